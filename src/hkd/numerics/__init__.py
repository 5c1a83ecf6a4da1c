"""What several methods share: precision, gathering over processes, memory banks and their negatives, InfoNCE. Torch alone."""
