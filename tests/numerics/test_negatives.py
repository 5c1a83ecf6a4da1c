"""Draws of negatives: distinct, uniform, of other classes, as many as there are."""

import math

import pytest
import torch

from hkd.numerics.negatives import NegativeSampler


@pytest.mark.parametrize("num_samples", [40, 1000, 100_000])
def test_a_shared_draw_is_distinct_and_reproducible(num_samples: int) -> None:
    sampler = NegativeSampler(num_samples, 64, seed=3)
    first = sampler.shared()
    assert torch.equal(sampler.shared(), first), "a draw stays the same until it is counted"
    sampler.draws += 1
    second = sampler.shared()
    for rows in (first, second):
        assert len(rows) == len(rows.unique()) == min(64, num_samples)
        assert rows.min() >= 0 and rows.max() < num_samples
    assert not torch.equal(first, second)
    assert torch.equal(NegativeSampler(num_samples, 64, seed=3).shared(), first)
    assert not torch.equal(NegativeSampler(num_samples, 64, seed=4).shared(), first)


@pytest.mark.parametrize(("num_samples", "count"), [(600, 30), (60, 30)])
def test_shared_draws_are_uniform(num_samples: int, count: int) -> None:
    sampler, draws = NegativeSampler(num_samples, count), 4000
    counts = torch.zeros(num_samples)
    for sampler.draws in range(draws):
        counts[sampler.shared()] += 1
    p = count / num_samples
    z = (counts - draws * p) / math.sqrt(draws * p * (1 - p))
    assert z.abs().max() < 5
    assert z.std().item() == pytest.approx(1, abs=0.3)


def own_negatives(labels: torch.Tensor | None, samples: int, anchor: int) -> set[int]:
    """What METHOD calls the negatives of an anchor, decided one pair at a time."""
    if labels is None:
        return set(range(samples)) - {anchor}
    return {j for j in range(samples) if labels[j] != labels[anchor]}


@pytest.mark.parametrize("count", [5, 25, 45, 1000])
@pytest.mark.parametrize("kind", ["balanced", "one abundant class", "none"])
def test_each_anchor_draws_as_many_of_its_negatives_as_there_are_up_to_k(count: int, kind: str) -> None:
    balanced = torch.randint(0, 4, (80,))
    labels = {"balanced": balanced, "one abundant class": balanced.where(torch.arange(80) > 50, 1), "none": None}[kind]
    sampler = NegativeSampler(80, count, labels)
    rows, surplus = sampler.per_sample(torch.arange(80))
    assert rows.min() >= 0 and rows.max() < 80
    kept = torch.ones_like(rows, dtype=torch.bool) if surplus is None else ~surplus
    sizes = set()
    for anchor in range(80):
        negatives, drawn = own_negatives(labels, 80, anchor), rows[anchor][kept[anchor]].tolist()
        assert len(drawn) == len(set(drawn)) == min(count, len(negatives))
        assert set(drawn) <= negatives
        sizes.add(len(negatives))
    assert rows.shape == (80, min(count, max(sizes))), "no wider than the anchor with the most"
    assert (surplus is None) == (min(sizes) >= min(count, max(sizes)))


@pytest.mark.parametrize("sizes", [(60, 50, 40), (300, 20, 20)])
@pytest.mark.parametrize("count", [6, 35, 100])
def test_per_sample_draws_are_uniform_over_other_classes(count: int, sizes: tuple[int, ...]) -> None:
    """Streams for all classes, random orders for all, and both."""
    samples, draws = sum(sizes), 3000
    labels = torch.arange(3).repeat_interleave(torch.tensor(sizes))[torch.randperm(samples)]
    sampler = NegativeSampler(samples, count, labels)
    anchors = torch.stack([(labels == c).nonzero()[0, 0] for c in range(3)])
    counts = torch.zeros(3, samples)
    for sampler.draws in range(draws):
        rows, surplus = sampler.per_sample(anchors)
        for c in range(3):
            counts[c, rows[c] if surplus is None else rows[c][~surplus[c]]] += 1
    for c, size in enumerate(sizes):
        others, p = counts[c][labels != c], min(1, count / (samples - size))
        assert counts[c].sum() == others.sum()
        if p == 1:
            assert (others == draws).all()
        else:
            assert ((others - draws * p) / math.sqrt(draws * p * (1 - p))).abs().max() < 5


def test_class_numbers_may_be_anything_from_0_up() -> None:
    """Counting classes up to 10**15 would take the memory of the machine."""
    labels = torch.tensor([10**15, 0, 7, 7, 10**15, 0])
    plain = NegativeSampler(6, 4, torch.tensor([2, 0, 1, 1, 2, 0]))
    sampler = NegativeSampler(6, 4, labels)
    index = torch.arange(6)
    assert torch.equal(sampler.class_of(index), plain.class_of(index))
    assert torch.equal(sampler.per_sample(index)[0], plain.per_sample(index)[0])


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.7, 1.2]), [0.5, 1.0, 2.0], torch.tensor([0j, 1j, 2j])])
def test_labels_that_are_no_integers_are_refused(labels: object) -> None:
    with pytest.raises(ValueError, match="labels: expected integers; got torch"):
        NegativeSampler(3, 2, labels)  # type: ignore[arg-type]
