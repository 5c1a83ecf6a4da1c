"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hkd.methods.base import Method, Setup, methods
from hkd.methods.kd import divergence
from hkd.numerics.classes import is_class, log_binary, log_softmax_without
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class DecoupledConfig:
    """The settings of DKD. The weights are the authors' for resnet32x4 -> resnet8x4."""

    temperature: float = option(4.0, "T", gt=0)
    target_weight: float = option(1.0, "weight of the target-class term", ge=0)
    nontarget_weight: float = option(
        8.0, "weight of the term of the other classes (the authors: 0.5 to 8, by pair)", ge=0
    )
    warmup_epochs: int = option(20, "epochs over which the weight of both terms rises to β", ge=0)


def decoupled(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(b^t || b^s) and KL(p̂^t || p̂^s) of :class:`DKD` for each row, without T²: (R,) each, 0 where there is no label.

    Args:
        student, teacher: (R, C) logits.
        label: (R,) classes; -1 for none.
        temperature: T.
    """
    known, label = (label >= 0)[:, None], label.clamp(min=0)
    s, t = at_least_float32(student), at_least_float32(teacher)
    # Where an image has no label, both are the teacher's, which adds 0 to either divergence.
    s, t = torch.where(known, s, t.to(s.dtype)) / temperature, t / temperature
    hidden = is_class(s, label)
    target = divergence(log_binary(s, label), log_binary(t, label))
    return target, divergence(log_softmax_without(s, hidden), log_softmax_without(t, hidden))


@methods.register("dkd")
class DKD(Method[DecoupledConfig]):
    r"""Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.

    .. math:: w_{target}\, T^2\, \mathrm{KL}(b^t \| b^s) + w_{nontarget}\, T^2\, \mathrm{KL}(\hat p^t \| \hat p^s)

    each a mean over the images of the batch that have a label. b = (p_y, 1 - p_y) is the binary probability of the
    label y under p = softmax(l / T), p̂ the softmax of the logits l / T of the other classes alone (B, C - 1). The
    weights (the paper's α and β) are 1 and, as the authors have it for resnet32x4 -> resnet8x4, 8; the warm-up of 20
    epochs is theirs. The terms include both weights.
    """

    Config = DecoupledConfig
    settings = "dkd"
    needs = frozenset({"logits"})

    def __init__(self, setup: Setup, config: DecoupledConfig) -> None:
        super().__init__(setup, config)
        self.warmup_epochs = config.warmup_epochs

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        target, nontarget = decoupled(student.logits, teacher.logits, batch.label, self.config.temperature)
        scale, count = self.config.temperature**2, (batch.label >= 0).sum().clamp(min=1)
        return {
            "target": self.config.target_weight * scale * (target.sum() / count),
            "nontarget": self.config.nontarget_weight * scale * (nontarget.sum() / count),
        }
