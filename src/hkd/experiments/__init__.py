"""Experiments over many runs. Each reads and writes run folders."""
