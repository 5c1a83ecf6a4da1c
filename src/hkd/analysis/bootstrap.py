"""Intervals of the difference between two methods."""

from __future__ import annotations

from collections.abc import Sequence
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

    Both methods classify the same N test images in the same T trials, correctly or not, so the differences
    :math:`D_{ti} \in \{-1, 0, 1\}` are paired. Each replicate draws trials and N images with replacement,
    independently of one another, and averages D over them; the interval runs from the 2.5 to the 97.5 percentile of
    the replicates. It covers both sources of variance: the seeds and the test images.

    T - 1 trials are drawn, not T, which makes the variance due to the seeds unbiased for small T. It is still an
    estimate from T numbers; with one trial the interval covers the images alone. The interaction of trial and image is
    counted in both factors, so the interval is somewhat wide where neither factor matters by itself.

    Args:
        ours, theirs: (T, N), whether the image was classified correctly.
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


def paired_t(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    r"""The mean difference over the trials, with a 95 % interval from the seeds alone.

    .. math:: \bar d \pm t_{.975, T-1} \frac{s_d}{\sqrt T}, \qquad d_t = a_t - b_t

    The test images are taken as given: the interval says what other seeds would change on these images.
    :func:`paired_bootstrap` covers other images as well.

    Args:
        ours, theirs: (T,) accuracies of the same trials in percent, in the same order.

    Returns:
        The interval in percentage points; None for fewer than 2 trials, which say nothing about the seeds.

    Source: Student, "The probable error of a mean", Biometrika 1908.
    """
    from scipy.stats import t

    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired t: expected the same number of trials for both; got {a.shape} and {b.shape}")
    if len(a) < 2:
        return None
    difference = a - b
    half = float(t.ppf(0.975, len(a) - 1) * difference.std(ddof=1) / np.sqrt(len(a)))
    mean = float(difference.mean())
    return Interval(mean, mean - half, mean + half)


@lru_cache(maxsize=4)
def _counts(size: int, drawn: int, seed: int) -> NDArray[np.float32]:
    """How often each of ``size`` items is drawn in each replicate, (R, size). The same for every pair of methods."""
    draw = np.random.default_rng(seed)
    counts = np.empty((REPLICATES, size), np.float32)
    for replicate in counts:
        replicate[:] = np.bincount(draw.integers(size, size=drawn), minlength=size)
    return counts
