"""Refined logit distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, methods
from hkd.numerics.classes import log_binary, log_softmax_without
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class RefinedConfig:
    """The settings of RLD, the defaults of the authors' code."""

    alpha: float = option(1.0, "α, weight of the term of the sample's confidence", ge=0)
    beta: float = option(8.0, "β, weight of the term of the classes below the label's (ImageNet: 0.5, 2)", ge=0)
    temperature: float = option(4.0, "T of the masked classes (the authors: 4 on CIFAR-100, 1 on ImageNet)", gt=0)
    confidence_temperature: float = option(1.0, "τ of the confidence (the authors' CIFAR-100 command: 4)", gt=0)
    warmup_epochs: int = option(20, "epochs over which the weight of both terms rises (ImageNet: 0)", ge=0)


@methods.register("rld")
class RLD(Method[RefinedConfig]):
    r"""Sun et al., "Knowledge Distillation with Refined Logits", ICCV 2025.

    .. math:: \alpha\, \tau^2\, \mathrm{KL}\big((p^t_m, 1 - p^t_m) \,\|\, (p^s_y, 1 - p^s_y)\big)
        + \beta\, T^2\, \mathrm{KL}(\hat p^t \| \hat p^s), \qquad m = \mathrm{argmax}_c\, l^t_c

    each a mean over the images of the batch that have a label y. p = softmax(l / τ): the student's probability of the
    label imitates the teacher's of its top class. p̂ is the softmax of l / T over the classes that the teacher ranks
    below the label, so that a wrong teacher hides every class that it prefers; where none is left the term is 0.
    α = 1, β = 8 (``rld.alpha``, ``rld.beta``) and the warm-up of 20 epochs are the defaults of the authors' code; the
    terms include both weights.
    """

    Config = RefinedConfig
    settings = "rld"
    needs = frozenset({"logits"})

    def __init__(self, setup: Setup, config: RefinedConfig) -> None:
        super().__init__(setup, config)
        self.warmup_epochs = config.warmup_epochs

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = at_least_float32(student.logits), at_least_float32(teacher.logits)
        known, top = batch.label >= 0, t.argmax(dim=1)
        # Where an image has no label, both sides are the teacher's, which adds 0 to either divergence.
        label = torch.where(known, batch.label, top)
        s = torch.where(known[:, None], s, t.to(s.dtype))
        count = known.sum().clamp(min=1)

        def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
            return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / count

        tau, temperature = self.config.confidence_temperature, self.config.temperature
        confidence = divergence(log_binary(s / tau, label), log_binary(t / tau, top))
        hidden = t >= t.gather(1, label[:, None])
        masked = divergence(log_softmax_without(s / temperature, hidden), log_softmax_without(t / temperature, hidden))
        return {
            "confidence": self.config.alpha * tau**2 * confidence,
            "masked": self.config.beta * temperature**2 * masked,
        }
