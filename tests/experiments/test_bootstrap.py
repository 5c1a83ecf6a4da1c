"""The paired bootstrap against what is known without it."""

import numpy as np
import pytest

from hkd.experiments.bootstrap import paired_bootstrap


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
    # a quarter of the replicates draw the worse trial twice
    assert found[1].low == 0
    assert found[0].decides and not found[1].decides


def test_the_draws_are_repeatable() -> None:
    draw = np.random.default_rng(2)
    ours, theirs = draw.random((3, 100)) < 0.6, draw.random((3, 100)) < 0.5
    assert paired_bootstrap(ours, theirs) == paired_bootstrap(ours, theirs)
    assert paired_bootstrap(ours, theirs) != paired_bootstrap(ours, theirs, seed=7)


def test_intervals_cover_as_often_as_they_say() -> None:
    draw, covered = np.random.default_rng(3), 0
    for _ in range(200):
        # the truth is 10 points; each image is the same in all trials, as a data set's are
        theirs = np.repeat(draw.random((1, 300)) < 0.5, 8, axis=0)
        ours = draw.random((8, 300)) < 0.6
        found = paired_bootstrap(ours, theirs)
        covered += found.low <= 10 <= found.high
    assert 0.9 <= covered / 200 <= 1.0
