"""Numbers for how much of one network's geometry another keeps: both embed the same N images."""

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
    r"""Which part of the k nearest neighbours two embeddings share, 1 where all; by chance k / (N - 1).

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
    """How few of the k nearest neighbours in b are far away in a, in [0, 1], by cosine distance.

    Source: Venna and Kaski, "Neighborhood preservation in nonlinear projection methods", ICANN 2001.
    """
    from sklearn.manifold import trustworthiness as of_units

    return float(of_units(_unit(a), _unit(b), n_neighbors=k))


def distance_correlation(a: Array, b: Array) -> float:
    r"""Correlation of all pairwise distances, in [0, 1]; 0 only for independent embeddings.

    .. math:: \sqrt{\frac{\langle \tilde D_a, \tilde D_b \rangle}{\|\tilde D_a\|_F \|\tilde D_b\|_F}}

    D are Euclidean distances, centred by row and column. Source: Székely et al., "Measuring and testing dependence by
    correlation of distances", Annals of Statistics 2007.
    """
    from scipy.spatial.distance import pdist, squareform

    centred = []
    for x in (a, b):
        distance = squareform(pdist(x.astype(np.float64)))
        rows, columns = distance.mean(axis=0, keepdims=True), distance.mean(axis=1, keepdims=True)
        centred.append(distance - rows - columns + distance.mean())
    product = float((centred[0] * centred[1]).sum())
    return float(np.sqrt(max(product, 0.0) / (np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))))


def aligned(points: Array, to: Array) -> Array:
    """Points scaled to the spread of others, and turned or mirrored to lie as near to them as they can (Procrustes).

    The scale that would bring them nearest is no use: it shrinks a picture the more, the less it agrees with the other.
    """
    from scipy.linalg import orthogonal_procrustes

    centred, goal = points - points.mean(axis=0), to - to.mean(axis=0)
    turn, _ = orthogonal_procrustes(centred, goal)
    return np.asarray(centred @ turn * (np.linalg.norm(goal) / np.linalg.norm(centred)) + to.mean(axis=0))


def _unit(x: Array) -> Array:
    x = x.astype(np.float64)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12))
