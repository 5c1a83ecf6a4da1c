"""Normalised knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hkd.methods.base import Method, Setup, methods
from hkd.numerics.classes import is_class, log_softmax_without
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class NormalisedConfig:
    """The settings of NKD, the authors' for ImageNet."""

    gamma: float = option(1.5, "γ, weight of the term of the other classes (the authors: 3.5 on CIFAR-100)", ge=0)
    temperature: float = option(1.0, "T of the other classes (the authors: 3 on CIFAR-100)", gt=0)


@methods.register("nkd")
class NKD(Method[NormalisedConfig]):
    r"""Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", ICCV 2023.

    .. math:: - p^t_y \log p^s_y - \gamma\, T^2 \sum_{c \neq y} \hat p^t_c \log \hat p^s_c

    each a mean over the images of the batch that have a label y. p = softmax(l), and p̂ is the softmax of the logits
    l / T of the other classes alone. γ = 1.5 and T = 1 are the authors' for ImageNet; the second term includes γ.
    """

    Config = NormalisedConfig
    settings = "nkd"
    needs = frozenset({"logits"})

    def __init__(self, setup: Setup, config: NormalisedConfig) -> None:
        super().__init__(setup, config)
        self.gamma, self.temperature = config.gamma, config.temperature

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = at_least_float32(student.logits), at_least_float32(teacher.logits)
        known, label = batch.label >= 0, batch.label.clamp(min=0)
        count = known.sum().clamp(min=1)
        log_s, log_t = (x.log_softmax(dim=1).gather(1, label[:, None])[:, 0] for x in (s, t))
        hidden = is_class(s, label)
        others_s, others_t = (log_softmax_without(x / self.temperature, hidden) for x in (s, t))
        target = -log_t.exp() * log_s
        nontarget = -(others_t.exp() * others_s).sum(dim=1)
        target, nontarget = (x.where(known, 0.0).sum() / count for x in (target, nontarget))
        return {"target": target, "nontarget": self.gamma * self.temperature**2 * nontarget}
