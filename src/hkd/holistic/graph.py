"""The attributed graph of a batch: edges between images with similar predictions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.numerics.precision import at_least_float32, full_precision


def knn_graph(logits: Tensor, k: int) -> Tensor:
    r"""Each image's neighbourhood: itself and the k - 1 others with the most similar predictions of its network.

    .. math:: p_a = \mathrm{softmax}(l_a), \qquad \mathrm{similarity}(a, b) = \cos(p_a, p_b)

    The graph is a constant of the step: no gradient passes through it. It is built from one dense (B, B) product and
    a top-k on the device of the logits.

    Args:
        logits: (B, C) predictions of one network, in any floating type; the arithmetic is at least float32.
        k: size of a neighbourhood, the node itself included. A batch smaller than k gives all its images, so a
            batch of one has its self loop only.

    Returns:
        (B, min(k, B)) int64 indices into the batch, each row's index first, then by falling similarity.

    Raises:
        ValueError: k is below 1.

    Source: Zhou et al., "Distilling Holistic Knowledge with Graph Neural Networks", ICCV 2021, section 3.2.
    """
    if k < 1:
        raise ValueError(f"k: expected 1 or more; got {k}")
    with full_precision(logits):
        direction = F.normalize(at_least_float32(logits.detach()).softmax(dim=1), dim=1)
        similarity = direction @ direction.T
    similarity.fill_diagonal_(torch.inf)  # the node itself always comes first, even among identical predictions
    return similarity.topk(min(k, len(logits)), dim=1).indices


def normalised_adjacency(neighbours: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""The propagation matrix :math:`\hat A = D^{-1/2} A D^{-1/2}` of a kNN graph.

    Messages run from neighbour to node, so every in-degree is k and :math:`\hat A = A / k`.

    Args:
        neighbours: (B, k) indices as returned by :func:`knn_graph`.
        dtype: floating type of the result.

    Returns:
        (B, B) matrix whose row a holds 1/k at the neighbours of a. Dense, because a product with a (B, B) matrix is
        faster and more reproducible than a scatter at every batch size that fits a device.
    """
    nodes, k = neighbours.shape
    adjacency = torch.zeros(nodes, nodes, dtype=dtype, device=neighbours.device)
    return adjacency.scatter_(1, neighbours, 1 / k)
