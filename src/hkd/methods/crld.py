"""Cross-view consistency of logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, methods
from hkd.methods.kd import cross_entropy
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class CrossViewConfig:
    """The settings of CRLD: the defaults of a copy of its code, the paper's for each pair not being known."""

    temperature: float = option(4.0, "T (ImageNet: 1)", gt=0)
    within_weight: float = option(2.0, "weight of the term within each view", ge=0)
    cross_weight: float = option(0.5, "weight of the term across the views", ge=0)
    strong_weight: float = option(1.0, "weight of the cross-entropy of the strong view", ge=0)
    weak_confidence: float = option(
        0.9, "the term within views is of images to which the teacher gives so much in the first view", ge=0, le=1
    )
    strong_confidence: float = option(0.2, "the term across views is of those in the strong view", ge=0, le=1)


def divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(t / T) || softmax(s / T)) of each image: (B, C) and (B, C) -> (B,)."""
    log_s, log_t = ((x / temperature).log_softmax(dim=1) for x in (student, teacher))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)


@methods.register("crld")
class CRLD(Method[CrossViewConfig]):
    r"""Zhang et al., "Cross-View Consistency Regularisation for Knowledge Distillation", ACM Multimedia 2024.

    .. math:: \mathrm{CE}(\tilde s) + 2\,\mathrm{mean}\,1(c \ge .9)\,[D(t, s) + D(\tilde t, \tilde s)]
        + .5\,\mathrm{mean}\,1(\tilde c \ge .2)\,[D(t, \tilde s) + D(\tilde t, s)]

    :math:`D(t, s) = T^2\,\mathrm{KL}(\mathrm{softmax}(t / T) \| \mathrm{softmax}(s / T))`, T = 4. A tilde is the strong
    view, which both networks see; c is the teacher's largest probability at T = 1, and the means are over all images of
    the batch, (B,). The strong view's confidence decides about both directions. Beside it, γ = 1 of CE of the first
    view. Constants are those of a copy of the authors' code.
    """

    Config = CrossViewConfig
    settings = "crld"
    needs = frozenset({"logits", "strong"})

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        image, config = self.strong_of(batch), self.config
        strong_s, strong_t = (at_least_float32(see(image).logits) for see in (self.student_sees, self.teacher_sees))
        s, t = at_least_float32(student.logits), at_least_float32(teacher.logits)
        pairs = {"within": ((s, t), (strong_s, strong_t)), "cross": ((strong_s, t), (s, strong_t))}
        terms = {name: sum(divergences(*pair, config.temperature) for pair in two) for name, two in pairs.items()}
        sure = t.softmax(dim=1).amax(dim=1) >= config.weak_confidence
        strong_sure = strong_t.softmax(dim=1).amax(dim=1) >= config.strong_confidence
        return {
            "strong_ce": config.strong_weight * cross_entropy(strong_s, batch.label),
            "within": config.within_weight * (sure * terms["within"]).mean(),
            "cross": config.cross_weight * (strong_sure * terms["cross"]).mean(),
        }
