"""Where and how a run computes, and what it leaves on disk."""
