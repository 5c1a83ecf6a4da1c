"""Classical knowledge distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


def mean_logits(logits: Sequence[Tensor], *, standardise: bool = False) -> Tensor:
    r"""What several teachers say of each image, as the logits of one: (B, C), in float32 or more.

    .. math:: \bar l = \frac{1}{n} \sum_i z(l_i) \cdot \frac{1}{n} \sum_i \mathrm{std}_c\, l_i

    with z as in :func:`standardised`, so that a teacher of large logits counts no more than another, and T means what
    it does with one teacher. Where logits are standardised anyway, the second factor is 1.

    Args:
        logits: (B, C) of each teacher.
        standardise: whether the second factor is left out.
    """
    mean = torch.stack([standardised(one) for one in logits]).mean(dim=0)
    if standardise:
        return mean
    return mean * torch.stack([centred(one)[1].sqrt() for one in logits]).mean(dim=0)


def kd_loss_of_teachers(
    student_logits: Tensor, teachers_logits: Sequence[Tensor], temperature: float, *, standardise: bool = False
) -> Tensor:
    """:func:`kd_loss` with the :func:`mean_logits` of several teachers, or with those of one as they are.

    Args:
        student_logits: (B, C).
        teachers_logits: (B, C) of each teacher.
        temperature: T.
        standardise: whether the student's and each teacher's logits are first :func:`standardised`; the mean over
            teachers is not standardised once more.
    """
    if len(teachers_logits) == 1:
        return kd_loss(student_logits, teachers_logits[0], temperature, standardise=standardise)
    student = standardised(student_logits) if standardise else student_logits
    return kd_loss(student, mean_logits(teachers_logits, standardise=standardise), temperature)


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    r"""The mean cross-entropy over the images that have a label, a scalar; 0 where none has.

    With weights it is :math:`\frac1n \sum_i w_{y_i} \mathrm{CE}_i`, divided by the number n of images and not by
    the sum of their weights, so that what an image contributes does not depend on the rest of its batch.

    Args:
        logits: (B, C).
        label: (B,) classes, -1 for none.
        weight: (C,) of the classes.
        smoothing: ε of Szegedy et al., 2016: the target is 1 - ε at the label and ε / C at every class besides.
    """
    loss = F.cross_entropy(logits, label, ignore_index=NO_LABEL, reduction="none", label_smoothing=smoothing)
    total = (loss if weight is None else loss * weight.to(loss.dtype)[label.clamp(min=0)]).sum()
    return total / (label != NO_LABEL).sum().clamp(min=1)


def batch_cross_entropy(logits: Tensor, batch: Batch, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    r"""The cross-entropy of a batch, a scalar; of mixed images that with both classes.

    .. math:: (1 - w)\, \mathrm{CE}(l, y) + w\, \mathrm{CE}(l, y')

    Args:
        logits: (B, C).
        batch: its classes y and, of :attr:`hkd.Batch.mixture`, y' and w.
        weight, smoothing: of both, see :func:`cross_entropy`.
    """
    loss = cross_entropy(logits, batch.label, weight, smoothing)
    if batch.mixture is None:
        return loss
    return torch.lerp(
        loss, cross_entropy(logits, batch.mixture.label, weight, smoothing), batch.mixture.weight.to(loss.dtype)
    )


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
    takes_mixed = True

    def __init__(self, setup: Setup, config: KDConfig) -> None:
        super().__init__(setup, config)
        self.temperature = config.temperature

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"kd": kd_loss(student.logits, teacher.logits, self.temperature)}
