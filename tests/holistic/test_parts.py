"""The parts of the holistic loss: graph, encoder, memory, draws, InfoNCE."""

import math

import pytest
import torch

from hkd.holistic import GraphEncoder, MemoryBank, NegativeSampler, info_nce, knn_graph, normalised_adjacency
from hkd.numerics import contrast as contrast_module
from tests.reference import holistic as reference


@pytest.mark.parametrize("size", [1, 2, 7, 30])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_neighbourhoods(size: int, k: int) -> None:
    logits = 2 * torch.randn(size, 6)
    assert knn_graph(logits, k).tolist() == reference.neighbourhoods(logits, k)


def test_the_node_itself_comes_first_among_identical_predictions() -> None:
    neighbours = knn_graph(torch.zeros(5, 3), 3)
    assert neighbours[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert all(len(set(row)) == 3 for row in neighbours.tolist())


def test_extreme_half_precision_logits_give_a_graph() -> None:
    logits = torch.tensor([[60000.0, -60000.0], [-60000.0, 60000.0], [60000.0, 0.0]], dtype=torch.float16)
    assert knn_graph(logits, 2).tolist() == [[0, 2], [1, 0], [2, 0]] or knn_graph(logits, 2)[:, 0].tolist() == [0, 1, 2]
    assert knn_graph(logits, 2)[0, 1] == 2


def test_every_in_degree_is_k() -> None:
    adjacency = normalised_adjacency(knn_graph(torch.randn(12, 4), 5))
    assert ((adjacency > 0).sum(dim=1) == 5).all()
    torch.testing.assert_close(adjacency.sum(dim=1), torch.ones(12))


def test_encoder_columns_are_ordered_by_hop() -> None:
    encoder = GraphEncoder(3, hops=2)
    x, neighbours = torch.randn(4, 3), [[0, 1], [1, 2], [2, 3], [3, 0]]
    out = encoder(x, normalised_adjacency(torch.tensor(neighbours)))
    layer = encoder.layers[0].linear
    assert layer.weight.shape == (3, 9)
    expected = reference.tag_layer(list(x.double()), neighbours, layer.weight.double(), layer.bias.double(), hops=2)
    torch.testing.assert_close(out.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_bank_starts_uniform() -> None:
    rows = MemoryBank(4000, 16).rows
    bound = reference.uniform_bound(16)
    assert rows.abs().max() <= bound
    assert rows.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


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


@pytest.mark.parametrize("count", [5, 25, 1000])
@pytest.mark.parametrize("labelled", [True, False])
def test_per_sample_draws_are_distinct_and_of_other_classes(count: int, labelled: bool) -> None:
    labels = torch.randint(0, 4, (80,)) if labelled else None
    sampler = NegativeSampler(80, count, labels)
    index = torch.arange(80)
    rows = sampler.per_sample(index)
    fewest = 79 if labels is None else 80 - int(labels.bincount().max())
    assert rows.shape == (80, min(count, fewest))
    for i, row in zip(index.tolist(), rows.tolist(), strict=True):
        assert len(set(row)) == len(row)
        assert all(j != i if labels is None else labels[j] != labels[i] for j in row)


@pytest.mark.parametrize("count", [6, 40])
def test_per_sample_draws_are_uniform_over_other_classes(count: int) -> None:
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)[torch.randperm(60)]
    sampler, draws = NegativeSampler(60, count, labels), 3000
    anchor = int((labels == 1).nonzero()[0])
    counts = torch.zeros(60)
    for sampler.draws in range(draws):
        counts[sampler.per_sample(torch.tensor([anchor]))[0]] += 1
    assert counts[labels == 1].sum() == 0
    p = min(count, 30) / 40
    z = (counts[labels != 1] - draws * p) / math.sqrt(draws * p * (1 - p))
    assert z.abs().max() < 5


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("masked", [False, True])
def test_info_nce(each: bool, block: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contrast_module._SIMILARITIES_AT_ONCE, "cpu", block * 4)
    anchor, positive = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    negatives = torch.randn((4, 23, 6) if each else (23, 6))
    mask = torch.rand(4, 23) < 0.4 if masked else None
    value = info_nce(anchor, positive, negatives, 0.3, mask)
    value.backward()

    a, p = anchor.detach().double().requires_grad_(), positive.detach().double().requires_grad_()
    losses = []
    for b in range(4):
        rows = (negatives[b] if each else negatives).double()
        losses.append(reference.nce(a[b], p[b], [r for j, r in enumerate(rows) if not masked or not mask[b, j]], 0.3))
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(anchor.grad.double(), a.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(positive.grad.double(), p.grad, rtol=1e-5, atol=1e-5)


def test_info_nce_passes_gradcheck() -> None:
    tensors = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    negatives = torch.randn(9, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, p: info_nce(a, p, negatives, 0.5), tensors)


def test_info_nce_is_stable_at_a_tiny_temperature() -> None:
    anchor = torch.eye(4)[:2].requires_grad_()
    value = info_nce(anchor, torch.eye(4)[:2], torch.eye(4), 1e-4)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(anchor.grad).all()


def test_public_parts_are_float32_under_autocast() -> None:
    anchor, positive, negatives, logits = (torch.randn(6, 8).bfloat16() for _ in range(4))
    bank, plain = MemoryBank(9, 8), MemoryBank(9, 8)
    plain.load_state_dict(bank.state_dict())
    index = torch.tensor([1, 2, 3, 4, 5, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, graph = info_nce(anchor, positive, negatives, 0.07), knn_graph(logits, 3)
        bank.update(index, anchor)
    plain.update(index, anchor.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, info_nce(anchor.float(), positive.float(), negatives.float(), 0.07))
    assert torch.equal(graph, knn_graph(logits.float(), 3))
    assert torch.equal(bank.rows, plain.rows)


@pytest.mark.parametrize("start", ["random", "first"])
def test_a_broken_embedding_leaves_its_row_alone(start: str) -> None:
    bank = MemoryBank(6, 4, start=start)
    before = bank.rows.clone()
    bank.update(torch.tensor([1, 2], dtype=torch.int32), torch.stack([torch.full((4,), torch.nan), torch.eye(4)[0]]))
    assert torch.equal(bank.rows[1], before[1])
    assert not torch.equal(bank.rows[2], before[2])
    bank.update(torch.tensor([1]), torch.eye(4)[:1])
    assert torch.equal(bank.rows[1], torch.eye(4)[0]) == (start == "first"), "a broken look is not the first"


def test_info_nce_without_negatives_is_zero() -> None:
    assert info_nce(torch.eye(3), torch.eye(3), torch.empty(0, 3), 0.1) == 0


def test_info_nce_refuses_what_it_does_not_compute() -> None:
    tensor = torch.randn(2, 3)
    with pytest.raises(ValueError, match="temperature"):
        info_nce(tensor, tensor, tensor, 0.0)
    with pytest.raises(ValueError, match="negatives"):
        info_nce(tensor, tensor, tensor.clone().requires_grad_(), 0.1)
