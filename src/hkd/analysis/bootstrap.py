"""How sure a difference between two methods is."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REPLICATES = 4000


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return not self.low <= 0 <= self.high


def paired_bootstrap(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], seed: int = 0) -> Interval:
    r"""The difference of two methods' accuracies in percentage points, with a 95 % interval.

    Both are right or wrong on the same N test images in the same T trials, so the differences
    :math:`D_{ti} \in \{-1, 0, 1\}` are paired. Each replicate draws trials and N images with replacement,
    independently of one another, and averages D over them; the interval's ends are the 2.5 and 97.5 percentiles of the
    replicates. It thus holds what would change with other seeds and with other test images.

    T - 1 trials are drawn, not T, which makes the variance that the seeds contribute unbiased for few trials. It is
    still an estimate from T numbers; with one trial the interval tells of the images alone. What is particular to a
    trial and an image is counted for both, so where neither matters by itself the interval is somewhat wide.

    Args:
        ours, theirs: (T, N), whether the image was classified rightly.
        seed: of the draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; two crossed factors: Owen, "The pigeonhole
    bootstrap", Annals of Applied Statistics 2007; T - 1 draws: Rao and Wu, "Resampling inference with complex survey
    data", JASA 1988.
    """
    difference = 100 * (ours.astype(np.float32) - theirs.astype(np.float32))
    trials, images = difference.shape
    by_trial = _counts(images, images, seed) @ difference.T / images  # (R, T)
    drawn = max(trials - 1, 1)
    means = (_counts(trials, drawn, seed + 1) * by_trial).sum(axis=1) / drawn
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _counts(size: int, drawn: int, seed: int) -> NDArray[np.float32]:
    """How often each of ``size`` things is drawn in each replicate, (R, size). The same for every pair of methods."""
    draw = np.random.default_rng(seed)
    found = np.empty((REPLICATES, size), np.float32)
    for replicate in found:
        replicate[:] = np.bincount(draw.integers(size, size=drawn), minlength=size)
    return found
