"""The paired bootstrap against what is known without it, the paired t interval against scipy."""

import numpy as np
import pytest
from scipy import stats

from hkd.analysis.bootstrap import paired_bootstrap, paired_t


def test_equal_methods_do_not_differ() -> None:
    right = np.random.default_rng(0).random((3, 500)) < 0.7
    assert paired_bootstrap(right, right) == (0.0, 0.0, 0.0)


def test_one_trial_gives_the_standard_error_of_paired_differences() -> None:
    draw = np.random.default_rng(1)
    theirs = draw.random((1, 1000)) < 0.6
    ours = np.where(draw.random((1, 1000)) < 0.2, draw.random((1, 1000)) < 0.8, theirs)
    found = paired_bootstrap(ours, theirs)
    difference = 100 * (ours.astype(float) - theirs.astype(float))
    half = 1.96 * difference.std() / np.sqrt(1000)
    assert found.mean == pytest.approx(difference.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_trials_that_disagree_widen_the_interval() -> None:
    images = 400
    theirs = np.zeros((2, images), bool)
    agree, disagree = np.zeros((2, images), bool), np.zeros((2, images), bool)
    agree[:, :80] = True
    disagree[0, :160] = True
    found = [paired_bootstrap(ours, theirs) for ours in (agree, disagree)]
    assert found[0].mean == found[1].mean == pytest.approx(20)
    assert found[1].high - found[1].low > 2 * (found[0].high - found[0].low)
    assert found[1].low == 0, "half of the replicates draw the worse trial"
    assert found[0].excludes_zero and not found[1].excludes_zero


def test_the_draws_are_repeatable() -> None:
    draw = np.random.default_rng(2)
    ours, theirs = draw.random((3, 100)) < 0.6, draw.random((3, 100)) < 0.5
    assert paired_bootstrap(ours, theirs) == paired_bootstrap(ours, theirs)
    assert paired_bootstrap(ours, theirs) != paired_bootstrap(ours, theirs, seed=7)


def test_intervals_cover_as_often_as_they_say() -> None:
    """Seeds and images both matter: the chance to be right on image i in trial t is .5 + a_t + b_i."""
    draw, trials, covered = np.random.default_rng(3), 6, 0
    for _ in range(300):
        seed_effect, image_effect = 0.03 * draw.standard_normal((trials, 1)), 0.2 * draw.standard_normal((1, 300))
        theirs = draw.random((1, 300)) < 0.5
        ours = draw.random((trials, 300)) < 0.5 + seed_effect + image_effect
        found = paired_bootstrap(ours, np.repeat(theirs, trials, axis=0))
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 300 <= 0.985


@pytest.mark.parametrize("trials", [2, 3, 10])
def test_paired_t_is_that_of_scipy(trials: int) -> None:
    draw = np.random.default_rng(trials)
    theirs = 70 + draw.standard_normal(trials)
    ours = theirs + 1 + 0.5 * draw.standard_normal(trials)
    interval = paired_t(ours.tolist(), theirs.tolist())
    reference = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert interval is not None
    assert interval.mean == pytest.approx(np.mean(ours - theirs))
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert interval.excludes_zero == (stats.ttest_rel(ours, theirs).pvalue < 0.05)


def test_paired_t_needs_two_trials() -> None:
    assert paired_t([], []) is None
    assert paired_t([70.0], [69.0]) is None
    assert paired_t([70.0, 71.0], [69.0, 70.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="same number of trials"):
        paired_t([70.0, 71.0], [69.0])
