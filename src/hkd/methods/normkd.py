"""Distillation with a temperature for each image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.kd import centred, standardised
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class NormConfig:
    """The setting of NormKD, the authors' for CIFAR-100."""

    temperature: float = option(2.0, "T, in deviations of an image's logits (the authors: 1 on ImageNet)", gt=0)


@methods.register("normkd")
class NormKD(Method[NormConfig]):
    r"""Chi et al., "NormKD: Normalized Logits for Knowledge Distillation", 2023.

    .. math:: \mathrm{mean}_b\, T_t^2\, \mathrm{KL}(\mathrm{softmax}(l_t / T_t) \,\|\, \mathrm{softmax}(l_s / T_s)),
        \qquad T_\cdot = T\, \mathrm{std}_c\, l_\cdot

    Each image has its own temperatures, from the unbiased deviation of its logits over the classes, through which the
    student's gradient passes. A softmax of standardised logits, as LSKD's, where images weigh as the square of their
    teacher's deviation; constant logits are treated alike (:func:`hkd.methods.kd.standardised`). T = 2 and
    .1 CE + .9 times this are the authors' for CIFAR-100; on ImageNet T is 1 and both weights .5.
    """

    Config = NormConfig
    settings = "normkd"
    weights = Weights(ce=0.1, method=0.9)
    needs = frozenset({"logits"})
    takes_mixed = True

    def __init__(self, setup: Setup, config: NormConfig) -> None:
        super().__init__(setup, config)
        self.temperature = config.temperature

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        log_s, log_t = ((standardised(o.logits) / self.temperature).log_softmax(dim=1) for o in (student, teacher))
        divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)
        variance = centred(teacher.logits)[1][:, 0]
        return {"normalised": (self.temperature**2 * variance * divergence).mean()}
