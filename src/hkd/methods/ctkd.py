"""Curriculum temperature for knowledge distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.kd import kd_loss
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class CurriculumConfig:
    """The settings of CTKD, as the authors'."""

    min_temperature: float = option(1.0, "the lowest T", gt=0)
    temperature_range: float = option(20.0, "how far T can rise above the lowest", gt=0)
    reversal_epochs: int = option(10, "epochs over which the reversed gradient of T rises (ImageNet: 5)", ge=1)


@methods.register("ctkd")
class CTKD(Method[CurriculumConfig]):
    r"""Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023.

    The form with one global temperature.

    .. math:: T^2\, \mathrm{KL}(\mathrm{softmax}(l_t / T) \,\|\, \mathrm{softmax}(l_s / T)) / B, \qquad
        T = 1 + 20\, \mathrm{sigmoid}(\theta)

    θ is one parameter, which starts at 1 (T = 15.6) and is trained with the student's optimiser, weight decay included.
    The student minimises the term and θ maximises it: the gradient that reaches θ, with that of T², is multiplied by

    .. math:: \lambda(e) = (\cos(\pi \min(e, 10) / 10) + 1) / 2 - 1

    in epoch e = 1, 2, ...: -.024 in the first, -1 from epoch 10 on, and -1 where no loop tells the epoch. β = .9 and
    γ = .1 of CE are the authors' for CIFAR-100 (1 and 1 on ImageNet). The instance-wise temperature of the paper is not
    built.
    """

    Config = CurriculumConfig
    settings = "ctkd"
    weights = Weights(ce=0.1, method=0.9)
    needs = frozenset({"logits"})
    takes_mixed = True
    follows_progress = True

    def __init__(self, setup: Setup, config: CurriculumConfig) -> None:
        super().__init__(setup, config)
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def reversal(self) -> float:
        """λ, which the gradient of θ is multiplied by, in [-1, 0]."""
        if self.progress is None:
            return -1.0
        part = min(self.progress.epoch + 1, self.config.reversal_epochs) / self.config.reversal_epochs
        return (math.cos(math.pi * part) + 1) / 2 - 1

    def temperature(self) -> Tensor:
        """T, a scalar whose gradient reaches θ reversed."""
        theta = at_least_float32(self.theta)
        fixed = theta.detach()
        theta = fixed + self.reversal * (theta - fixed)  # the value of θ, λ times its gradient
        return self.config.min_temperature + self.config.temperature_range * theta.sigmoid()

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"curriculum": kd_loss(student.logits, teacher.logits, self.temperature())}
