"""Random numbers that need no state: a name (seed, epoch) and a row decide them."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's order. It lives on the CPU, so that the order is the same on every device."""
    return torch.Generator().manual_seed(random.Random(f"epoch {seed} {epoch}").getrandbits(63))


def draws(name: str, rows: Tensor) -> NDArray[np.uint64]:
    r"""64 random bits for each row, which depend on the name and on that row alone.

    They are outputs number :math:`i` of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014), which starts at a digest of the name:
    :math:`z = s + (i + 1)\,\gamma`, mixed by two multiplications and three shifts.

    Args:
        name: what the numbers are for, with all that they depend on, such as ``"views 0 12"``.
        rows: (N,) int64, from 0.

    Returns:
        (N,) numbers in [0, 2^64).
    """
    start = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8").astype(np.uint64)
    z = start + (rows.numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # arrays wrap at 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
