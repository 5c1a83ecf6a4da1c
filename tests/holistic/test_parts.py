"""The parts of the holistic loss: graph and encoder."""

import pytest
import torch

from hkd.holistic import GraphEncoder, MemoryBank, info_nce, knn_graph, normalised_adjacency
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
