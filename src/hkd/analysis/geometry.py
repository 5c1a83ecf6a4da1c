"""How much of one network's geometry another keeps: both embed the same N images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def neighbours(x: Array, k: int) -> NDArray[np.int64]:
    """The k nearest other images of each by cosine similarity, (N, D) -> (N, k)."""
    similarity = _unit(x) @ _unit(x).T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(np.argsort(-similarity, axis=1, kind="stable")[:, :k])


def knn_overlap(a: Array, b: Array, k: int) -> float:
    r"""The fraction of the k nearest neighbours that two embeddings share, in [0, 1]; k / (N - 1) by chance.

    .. math:: \frac{1}{N k} \sum_i |\mathcal N_k^a(i) \cap \mathcal N_k^b(i)|
    """
    shared = [len(np.intersect1d(p, q)) for p, q in zip(neighbours(a, k), neighbours(b, k), strict=True)]
    return float(np.mean(shared)) / k


def linear_cka(a: Array, b: Array) -> float:
    r"""Linear centred kernel alignment, in [0, 1]; 1 for embeddings that differ by rotation and scale.

    .. math:: \frac{\|B^\top A\|_F^2}{\|A^\top A\|_F \|B^\top B\|_F}

    with columns centred. Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.
    """
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (a, b))
    return float(np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def trustworthiness(a: Array, b: Array, k: int) -> float:
    r"""One minus a penalty for neighbours in b that are far away in a, in [0, 1], by cosine distance; .5 by chance.

    .. math:: 1 - \frac{2}{N k (2N - 3k - 1)} \sum_i \sum_{j \in \mathcal N_k^b(i)} \max(0, r^a_i(j) - k)

    :math:`r^a_i(j)` is the rank of j among the neighbours of i in a, from 1.

    Source: Venna and Kaski, "Neighborhood preservation in nonlinear projection methods", ICANN 2001.
    """
    from sklearn.manifold import trustworthiness as of_units

    return float(of_units(_unit(a), _unit(b), n_neighbors=k))


def distance_correlation_squared(a: Array, b: Array) -> float:
    r"""Bias-corrected squared correlation of all pairwise distances, in [-1, 1]; about 0 for independent embeddings.

    .. math:: R^*_n = \frac{\langle \tilde D_a, \tilde D_b \rangle}{\|\tilde D_a\|_F \|\tilde D_b\|_F}

    :math:`\tilde D` is the U-centred matrix of Euclidean distances. The product of two such matrices, divided by
    n(n - 3), is an unbiased estimate of the squared distance covariance, so R* may be negative, and no root is taken.
    The plain statistic of 2007 (centred by row and column means) is biased upwards with the dimension: for independent
    normal embeddings of 1,000 images it is .45 in 64 dimensions and .71 in 256.

    Args:
        a, b: (n, D) and (n, D'), n > 3. The result is 0 where one is constant.

    Source: Székely and Rizzo, "The distance correlation t-test of independence in high dimension", Journal of
    Multivariate Analysis 2013, and "Partial distance correlation with methods for dissimilarities", Annals of
    Statistics 2014.
    """
    if len(a) != len(b) or len(a) <= 3:
        raise ValueError(f"distance correlation: expected two embeddings of the same n > 3; got {len(a)} and {len(b)}")
    p, q = _u_centred(a), _u_centred(b)
    norms = np.linalg.norm(p) * np.linalg.norm(q)
    return float((p * q).sum() / norms) if norms > 0 else 0.0


def _u_centred(x: Array) -> NDArray[np.float64]:
    """Distances between rows, (n, D) -> (n, n), whose rows and columns sum to 0 without the diagonal, which is 0."""
    from scipy.spatial.distance import pdist, squareform

    n = len(x)
    distance = squareform(pdist(x.astype(np.float64)))
    sums = distance.sum(axis=0)
    centred = distance - sums / (n - 2) - sums[:, None] / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return np.asarray(centred)


def aligned(points: Array, to: Array) -> Array:
    """Points (N, 2), rotated or reflected to be nearest to others (Procrustes), and scaled to the same spread.

    The scale that minimises the distance is not used: the less two layouts agree, the more it shrinks one of them.
    """
    from scipy.linalg import orthogonal_procrustes

    centred, goal = points - points.mean(axis=0), to - to.mean(axis=0)
    turn, _ = orthogonal_procrustes(centred, goal)
    return np.asarray(centred @ turn * (np.linalg.norm(goal) / np.linalg.norm(centred)) + to.mean(axis=0))


def _unit(x: Array) -> Array:
    x = x.astype(np.float64)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12))
