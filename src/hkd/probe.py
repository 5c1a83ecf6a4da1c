"""The linear probe: a linear classifier on features that a frozen network computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkd.errors import RequestError

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Probe = Callable[[Array, Labels, float, int], Callable[[Array], Labels]]
"""(features (N, D), labels (N,), penalty, seed) -> a function that predicts the labels of other features."""

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""λ in: mean cross-entropy + λ/2 · squared weights; the weight decay of SGD."""
NEVER = -1e4
"""The logit of a class without an image."""


@dataclass(frozen=True)
class LinearClassifier:
    """Logits x Wᵀ + b of features x (N, D).

    Attributes:
        weight: W (C, D) float64.
        bias: b (C,) float64.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, features: Array) -> Labels:
        """The most likely class of each row."""
        return np.asarray((features @ self.weight.T + self.bias).argmax(axis=1), np.int64)


def fit_logistic(x: Array, y: Labels, penalty: float, seed: int, classes: int | None = None) -> LinearClassifier:
    """Logistic regression on standardised features, the standardisation folded into the weights.

    Args:
        x: (N, D) features.
        y: (N,) labels.
        penalty: λ, on the weights for standardised features; see :data:`PENALTIES`.
        seed: of the solver.
        classes: C, the largest label and one if not given.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # scikit-learn sums the loss over images
    scaler = StandardScaler().fit(x)
    solver = LogisticRegression(C=1 / (penalty * len(y)), max_iter=2000, random_state=seed)
    solver.fit(scaler.transform(x), y)
    weight, bias = solver.coef_.astype(np.float64), solver.intercept_.astype(np.float64)
    if len(solver.classes_) == 2:  # of the second class against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    count = classes or int(y.max()) + 1
    made = LinearClassifier(np.zeros((count, x.shape[1])), np.full(count, NEVER))
    made.weight[solver.classes_], made.bias[solver.classes_] = weight, bias
    return made


def best_penalty(probe: Probe, x: Array, y: Labels, holdout: float, seed: int) -> tuple[float, float]:
    """The penalty with the best accuracy on a held-out part of the images, and that accuracy in percent.

    Raises:
        RequestError: a class has one image, or there are more classes than held-out images.
    """
    from sklearn.model_selection import train_test_split

    try:
        fit, held = train_test_split(np.arange(len(y)), test_size=holdout, random_state=seed, stratify=y)
    except ValueError as error:
        raise RequestError(
            f"holdout: expected a fraction with an image of every class; got {holdout} of {len(y)} ({error})"
        ) from error
    top1 = {p: 100 * float(np.mean(probe(x[fit], y[fit], p, seed)(x[held]) == y[held])) for p in PENALTIES}
    best = max(top1, key=lambda penalty: top1[penalty])
    return best, top1[best]
