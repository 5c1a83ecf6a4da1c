"""What several methods share: precision, gathering over processes, memory banks, negatives, InfoNCE. Torch alone."""
