"""Training: one loop, the engine it runs on, and the folder it leaves behind."""
