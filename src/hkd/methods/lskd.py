"""Distillation of standardised logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.kd import kd_loss
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class StandardisedConfig:
    """The setting of LSKD, the authors' for CIFAR-100."""

    temperature: float = option(2.0, "T, of standardised logits (the authors: 2 to 4, by pair)", gt=0)


@methods.register("lskd")
class LSKD(Method[StandardisedConfig]):
    r"""Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.

    .. math:: T^2\, \mathrm{mean}_b\, \mathrm{KL}(\mathrm{softmax}(z(l_t) / T) \,\|\, \mathrm{softmax}(z(l_s) / T))

    with each image's logits standardised over the classes (:func:`hkd.methods.kd.standardised`), so that the student
    need not match the teacher's range. T = 2 and .1 CE + 9 times this are the authors' for CIFAR-100; on ImageNet the
    cross-entropy has weight 1. With ``--kd-standardise`` the classical term beside any method is of this form.
    """

    Config = StandardisedConfig
    settings = "lskd"
    weights = Weights(ce=0.1, method=9.0)
    needs = frozenset({"logits"})
    takes_mixed = True

    def __init__(self, setup: Setup, config: StandardisedConfig) -> None:
        super().__init__(setup, config)
        self.temperature = config.temperature

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"standardised": kd_loss(student.logits, teacher.logits, self.temperature, standardise=True)}
