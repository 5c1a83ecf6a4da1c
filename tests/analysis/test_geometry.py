"""Each number against a plain re-statement with loops, and against what it must be."""

import math

import numpy as np
import pytest

from hkd.analysis.geometry import aligned, distance_correlation_squared, knn_overlap, linear_cka, trustworthiness


def two(seed: int = 0, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    a = draw.standard_normal((n, 5))
    return a, np.concatenate([a[:, :3] + 0.5 * draw.standard_normal((n, 3)), draw.standard_normal((n, 4))], axis=1)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def order(x: np.ndarray, i: int) -> list[int]:
    return sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine(x[i], x[j]))


@pytest.mark.parametrize("k", [1, 4])
def test_knn_overlap(k: int) -> None:
    a, b = two()
    shared = sum(len(set(order(a, i)[:k]) & set(order(b, i)[:k])) for i in range(len(a)))
    assert knn_overlap(a, b, k) == pytest.approx(shared / (k * len(a)))


def test_linear_cka() -> None:
    a, b = two()

    def gram(x: np.ndarray) -> list[list[float]]:
        centred = [[x[i][c] - sum(row[c] for row in x) / len(x) for c in range(x.shape[1])] for i in range(len(x))]
        return [[sum(p * q for p, q in zip(u, v, strict=True)) for v in centred] for u in centred]

    def inner(p: list[list[float]], q: list[list[float]]) -> float:
        return sum(x * y for u, v in zip(p, q, strict=True) for x, y in zip(u, v, strict=True))

    k, m = gram(a), gram(b)
    assert linear_cka(a, b) == pytest.approx(inner(k, m) / math.sqrt(inner(k, k) * inner(m, m)))


@pytest.mark.parametrize("k", [3, 5])
def test_trustworthiness(k: int) -> None:
    a, b = two()
    n = len(a)
    penalty = 0
    for i in range(n):
        rank = {j: r for r, j in enumerate(order(a, i), 1)}
        penalty += sum(rank[j] - k for j in order(b, i)[:k] if rank[j] > k)
    assert trustworthiness(a, b, k) == pytest.approx(1 - 2 * penalty / (n * k * (2 * n - 3 * k - 1)))


def u_centred(x: np.ndarray) -> list[list[float]]:
    n = len(x)
    d = [[math.dist(u, v) for v in x] for u in x]
    rows, whole = [sum(row) / (n - 2) for row in d], sum(map(sum, d)) / ((n - 1) * (n - 2))
    return [[0.0 if i == j else d[i][j] - rows[i] - rows[j] + whole for j in range(n)] for i in range(n)]


def distance_covariance(p: list[list[float]], q: list[list[float]]) -> float:
    n = len(p)
    return sum(p[i][j] * q[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 3))


@pytest.mark.parametrize("n", [4, 20])
def test_distance_correlation(n: int) -> None:
    a, b = two(n=n)
    p, q = u_centred(a), u_centred(b)
    expected = distance_covariance(p, q) / math.sqrt(distance_covariance(p, p) * distance_covariance(q, q))
    assert distance_correlation_squared(a, b) == pytest.approx(expected)
    assert distance_correlation_squared(b, a) == pytest.approx(expected)


def test_distance_correlation_of_independent_embeddings_is_about_0() -> None:
    """The mean of 20 draws is 0 within its error, and single draws have both signs: the statistic is unbiased."""
    draw = np.random.default_rng(4)
    values = np.array([distance_correlation_squared(*draw.standard_normal((2, 300, 64))) for _ in range(20)])
    assert np.abs(values).max() < 0.1
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(20)
    assert values.min() < 0 < values.max()


def test_distance_correlation_of_one_embedding_with_itself_is_1() -> None:
    a = np.random.default_rng(5).standard_normal((300, 64)).astype(np.float32)
    assert distance_correlation_squared(a, a) == pytest.approx(1)


def test_distance_correlation_without_distances() -> None:
    a, _ = two()
    assert distance_correlation_squared(a, np.ones_like(a)) == 0
    with pytest.raises(ValueError, match="expected two embeddings of the same n > 3; got 3 and 3"):
        distance_correlation_squared(a[:3], a[:3])


def test_rotation_and_scale_change_nothing() -> None:
    a, _ = two()
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    b = 3 * a @ turn
    assert knn_overlap(a, b, 4) == trustworthiness(a, b, 4) == 1
    assert linear_cka(a, b) == pytest.approx(1)
    assert distance_correlation_squared(a, b) == pytest.approx(1)


def test_unrelated_embeddings_share_what_chance_gives() -> None:
    draw = np.random.default_rng(2)
    a, b = draw.standard_normal((400, 8)), draw.standard_normal((400, 8))
    assert knn_overlap(a, b, 10) == pytest.approx(10 / 399, abs=0.01)
    assert linear_cka(a, b) < 0.1
    assert trustworthiness(a, b, 10) == pytest.approx(0.5, abs=0.05)
    assert abs(distance_correlation_squared(a, b)) < 0.02


def test_alignment_finds_a_turned_copy() -> None:
    a = np.random.default_rng(3).standard_normal((30, 2))
    mirrored = 5 * a @ np.array([[0.6, 0.8], [0.8, -0.6]]) + [7, -2]
    np.testing.assert_allclose(aligned(mirrored, a), a, atol=1e-9)
