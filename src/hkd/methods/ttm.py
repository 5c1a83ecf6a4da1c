"""Transformed teacher matching."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.kd import divergence
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class TransformedConfig:
    """The setting of TTM, the authors' in their example (vgg13 -> vgg8)."""

    gamma: float = option(0.1, "γ, the power of the teacher's probabilities; 1/γ is its temperature", gt=0)


def transformed_matching(student: Tensor, teacher: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    r"""What TTM and WTTM are the means of, in float32 or more.

    .. math:: u = \mathrm{softmax}(l_t)^\gamma, \quad U = \sum_c u_c, \quad
        \mathrm{KL}(u / U \,\|\, \mathrm{softmax}(l_s))

    u / U is softmax(γ l_t), and log U = logsumexp(γ l_t) - γ logsumexp(l_t), which neither over- nor underflows.

    Args:
        student, teacher: (B, C) logits.
        gamma: γ.

    Returns:
        (B,) the divergences, and (B,) U.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    powered = gamma * teacher
    matched = divergence(student.log_softmax(1), powered.log_softmax(1))
    return matched, (powered.logsumexp(1) - gamma * teacher.logsumexp(1)).exp()


@methods.register("ttm")
class TTM(Method[TransformedConfig]):
    r"""Zheng et al., "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.

    .. math:: \mathrm{mean}_b\, \mathrm{KL}(\tilde p \,\|\, \mathrm{softmax}(l_s)), \qquad
        \tilde p \propto \mathrm{softmax}(l_t)^\gamma

    The temperature 1/γ is the teacher's alone, and there is no factor T². γ = .1 and β = 45 beside the cross-entropy
    are the authors' example for vgg13 -> vgg8.
    """

    Config = TransformedConfig
    settings = "ttm"
    weights = Weights(method=45.0)
    needs = frozenset({"logits"})
    takes_mixed = True

    def __init__(self, setup: Setup, config: TransformedConfig) -> None:
        super().__init__(setup, config)
        self.gamma = config.gamma

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        matched, _ = transformed_matching(student.logits, teacher.logits, self.gamma)
        return {"transformed": matched.mean()}
