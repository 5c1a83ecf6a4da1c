"""Weighted transformed teacher matching."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.ttm import transformed_matching
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class WeightedTransformedConfig:
    """The setting of WTTM, the authors' in their example beside CRD (vgg13 -> vgg8)."""

    gamma: float = option(0.2, "γ, the power of the teacher's probabilities; 1/γ is its temperature", gt=0)


@methods.register("wttm")
class WTTM(Method[WeightedTransformedConfig]):
    r"""Zheng et al., "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.

    .. math:: \mathrm{mean}_b\, U\, \mathrm{KL}(\tilde p \,\|\, \mathrm{softmax}(l_s)), \qquad
        \tilde p = \mathrm{softmax}(l_t)^\gamma / U, \quad U = \sum_c \mathrm{softmax}(l_t)_c^\gamma

    U grows with the flatness of what the teacher says of an image, from 1 to C^(1 - γ) for γ <= 1. γ = .2 and β = 4 are
    the authors' example beside CRD; they publish none of WTTM alone.
    """

    Config = WeightedTransformedConfig
    settings = "wttm"
    weights = Weights(method=4.0)
    needs = frozenset({"logits"})
    takes_mixed = True

    def __init__(self, setup: Setup, config: WeightedTransformedConfig) -> None:
        super().__init__(setup, config)
        self.gamma = config.gamma

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        divergence, weight = transformed_matching(student.logits, teacher.logits, self.gamma)
        return {"weighted": (weight * divergence).mean()}
