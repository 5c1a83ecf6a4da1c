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


def divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each row of log-probabilities: (R, C) and (R, C) -> (R,)."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)


FLATTEST = 1e-4
"""The smallest standard deviation over classes by which logits are divided; that of a trained network is about 1."""
ROUNDING = 1e-6
"""The part of its largest value below which a row's deviation is rounding."""


def centred(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits without their mean over classes, and their variance (unbiased): (B, C) gives (B, C) and (B, 1)."""
    rest = at_least_float32(logits)
    rest = rest - rest.mean(dim=1, keepdim=True)
    return rest, rest.square().sum(dim=1, keepdim=True) / max(rest.shape[1] - 1, 1)


def standardised(logits: Tensor) -> Tensor:
    r"""Each image's logits with mean 0 and standard deviation 1 over the classes, in float32 or more.

    .. math:: z(l) = (l - \mathrm{mean}_c\, l) / \mathrm{std}_c\, l

    with the unbiased deviation. Where that is nothing but rounding, or below 1e-4, the logits are only centred: the
    division would multiply the gradient of an image of constant logits without bound.

    Args:
        logits: (B, C).

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.
    """
    rest, variance = centred(logits)
    least = (ROUNDING * logits.detach().abs().amax(dim=1, keepdim=True).to(rest.dtype)).clamp(min=FLATTEST)
    return rest / variance.where(variance > least.square(), 1.0).sqrt()


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, *, standardise: bool = False
) -> Tensor:
    r"""The classical distillation term, a scalar, in float32 or more.

    .. math:: T^2\, \mathrm{KL}(\mathrm{softmax}(l_t / T) \,\|\, \mathrm{softmax}(l_s / T)) / B

    Args:
        student_logits, teacher_logits: (B, C).
        temperature: T; a scalar tensor may be one that is learnt.
        standardise: whether l are first :func:`standardised`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    prepared = standardised if standardise else at_least_float32
    student = (prepared(student_logits) / temperature).log_softmax(dim=1)
    teacher = (prepared(teacher_logits) / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""The mean cross-entropy over the images that have a label, a scalar; 0 where none has.

    With weights it is :math:`\frac1n \sum_i w_{y_i} \mathrm{CE}_i`, divided by the number n of images and not by
    the sum of their weights, so that what an image contributes does not depend on the rest of its batch.

    Args:
        logits: (B, C).
        label: (B,) classes, -1 for none.
        weight: (C,) of the classes.
    """
    weight = None if weight is None else weight.to(logits.dtype)
    total = F.cross_entropy(logits, label, weight, ignore_index=NO_LABEL, reduction="sum")
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
