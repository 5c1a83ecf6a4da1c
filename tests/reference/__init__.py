"""Slow, obvious float64 re-statements of each formula, written before the fast ones and read beside the paper."""
