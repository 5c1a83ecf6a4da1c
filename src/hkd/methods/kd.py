"""Classical knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput

NO_LABEL = -1
"""The label of an image without one; the cross-entropy ignores it."""


@dataclass(frozen=True)
class KDConfig:
    """The setting of KD, the benchmark's."""

    temperature: float = option(4.0, "T of the KD term", gt=0)


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""The classical distillation term, a scalar, in float32 or more.

    .. math:: T^2\, \mathrm{KL}(\mathrm{softmax}(l_t / T) \,\|\, \mathrm{softmax}(l_s / T)) / B

    Args:
        student_logits, teacher_logits: (B, C).
        temperature: T.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    student = (at_least_float32(student_logits) / temperature).log_softmax(dim=1)
    teacher = (at_least_float32(teacher_logits) / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy over the images that have a label, a scalar; 0 where none has.

    Args:
        logits: (B, C).
        label: (B,) classes, -1 for none.
    """
    total = F.cross_entropy(logits, label, ignore_index=NO_LABEL, reduction="sum")
    return total / (label != NO_LABEL).sum().clamp(min=1)


@methods.register("kd")
class KD(Method[KDConfig]):
    """Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.

    See :func:`kd_loss`. The training objective holds this very term beside every other method, with weight α
    (``--kd-weight``, or ``NAME+kd``) and temperature ``--kd-temperature``. On its own it is that same term with the
    benchmark's weights, .1 CE + .9 KD, so β, which would count it twice, is 0.
    """

    Config = KDConfig
    weights = Weights(ce=0.1, kd=0.9, method=0.0)
    needs = frozenset({"logits"})

    def __init__(self, setup: Setup, config: KDConfig) -> None:
        super().__init__(setup, config)
        self.temperature = config.temperature

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"kd": kd_loss(student.logits, teacher.logits, self.temperature)}
