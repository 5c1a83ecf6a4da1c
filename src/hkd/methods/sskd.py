"""Self-supervised knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Initialisation, Method, Setup, Weights, methods
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class SelfSupervisedConfig:
    """The settings of SSKD, as the authors'."""

    rotated_weight: float = option(2.7, "weight of the term on the rotated images' logits", ge=0)
    similarity_weight: float = option(10.0, "weight of the term on the similarities", ge=0)
    rotated_temperature: float = option(4.0, "T of the rotated images' logits", gt=0)
    similarity_temperature: float = option(0.5, "T of the similarities", gt=0)
    rotated_keep: float = option(1.0, "part kept of the rotated images that the teacher gets wrong", ge=0, le=1)
    similarity_keep: float = option(
        0.75, "part kept of the rotated images whose upright one the teacher does not rank first", ge=0, le=1
    )
    init_epochs: int = option(60, "epochs in which the teacher's head learns to rank the upright image first", ge=0)
    init_lr: float = option(
        0.05, "learning rate of that stage, divided by 10 after half and three quarters of it", gt=0
    )


def rotations(image: Tensor) -> Tensor:
    """Images turned by 90, 180 and 270 degrees: (B, 3, H, H) -> (3 B, 3, H, H), all of 90 first."""
    return torch.cat([image.rot90(turns, dims=(2, 3)) for turns in (1, 2, 3)])


def similarities(upright: Tensor, rotated: Tensor) -> Tensor:
    """Cosines of each rotated image with each upright one, (B, d) and (3 B, d) -> (3 B, B)."""
    return F.normalize(rotated, dim=1) @ F.normalize(upright, dim=1).T


def selective_kl(student: Tensor, teacher: Tensor, target: Tensor, temperature: float, keep: float) -> Tensor:
    r"""T² KL(softmax(t / T) || softmax(s / T)), a mean over the rows that are worth learning.

    Rows are ranked by the place of the target column among the teacher's; all rows that have it first are kept and,
    in that order, the given part of the others. Looks at no value on the host.

    Args:
        student, teacher: (R, C).
        target: (R,) columns; rows with -1, of images without a label, are not used.
        temperature: T.
        keep: part of the rows that do not have it first, rounded down.
    """
    known = target >= 0
    place = (teacher > teacher.gather(1, target[:, None].clamp(min=0))).sum(dim=1)
    wrong = ((place > 0) & known).sum()
    place = place.masked_fill(~known, teacher.shape[1])  # behind all others
    kept = known.sum() - wrong + (wrong * keep).floor()
    order = torch.empty_like(place)
    order[place.argsort(stable=True)] = torch.arange(len(place), device=place.device)
    chosen = (order < kept).to(student.dtype)
    log_s, log_t = ((x / temperature).log_softmax(dim=1) for x in (student, teacher))
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * (chosen * divergence).sum() / chosen.sum().clamp(min=1)


class SelfSupervisedHead(nn.Sequential):
    """Two linear layers of the embedding's width on top of a network."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


@methods.register("sskd")
class SSKD(Method[SelfSupervisedConfig]):
    r"""Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020.

    .. math:: 2.7\; T^2\,\mathrm{KL}(\mathrm{softmax}(\tilde l_t / T) \| \mathrm{softmax}(\tilde l_s / T))
        + 10\; T'^2\,\mathrm{KL}(\mathrm{softmax}(A_t / T') \| \mathrm{softmax}(A_s / T')), \quad T = 4,\ T' = .5

    l̃ (3B, C) are the logits of the batch's images rotated by 90, 180 and 270 degrees. A (3B, B) are the cosines of
    each rotated image with each upright one, between the outputs of a head of two layers on the embeddings (B, D). Of
    the rotated images whose upright one the teacher does not rank first, the worst quarter is not used
    (:func:`selective_kl`). The head of the teacher learns to rank the upright image first in an initialisation of 60
    epochs and is then fixed.

    The terms include the weights; β = 1, with γ = .1 and α = .9 of CE and KD on the upright images. The method shows
    both networks the rotated images in a second pass, whose batch statistics stay out of the student's running ones:
    upright images are tested by the statistics of upright images. (The authors pass all four views at once.)
    """

    Config = SelfSupervisedConfig
    settings = "sskd"
    weights = Weights(ce=0.1, kd=0.9, method=1.0)
    needs = frozenset({"embedding", "images"})
    always_trains_all = False  # the teacher's head is trained in the initialisation alone

    def __init__(self, setup: Setup, config: SelfSupervisedConfig) -> None:
        super().__init__(setup, config)
        self.head_student = SelfSupervisedHead(setup.student.embedding_dim)
        self.head_teacher = SelfSupervisedHead(setup.teacher.embedding_dim)
        self.initialisation = Initialisation(
            config.init_epochs, self.rank_upright, with_student=False, lr=config.init_lr, milestones=(0.5, 0.75)
        )

    def rank_upright(self, batch: Batch, teacher: ModelOutput) -> dict[str, Tensor]:
        """The term of the initialisation: the cross-entropy of which upright image a rotated one is."""
        turned = self.teacher_sees(rotations(batch.image))
        return {
            "upright": F.cross_entropy(self._cosines(self.head_teacher, teacher, turned), self._upright_columns(batch))
        }

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        image, config = rotations(batch.image), self.config
        turned_s, turned_t = self.student_sees(image, keep_statistics=True), self.teacher_sees(image)
        with torch.no_grad():
            cosines_t = self._cosines(self.head_teacher, teacher, turned_t)
        cosines_s = self._cosines(self.head_student, student, turned_s)
        logits_s, logits_t = (at_least_float32(turned.logits) for turned in (turned_s, turned_t))
        label = batch.label.repeat(3)
        rotated = selective_kl(logits_s, logits_t, label, config.rotated_temperature, config.rotated_keep)
        similarity = selective_kl(
            cosines_s, cosines_t, self._upright_columns(batch), config.similarity_temperature, config.similarity_keep
        )
        return {"rotated": config.rotated_weight * rotated, "similarity": config.similarity_weight * similarity}

    @staticmethod
    def _cosines(head: nn.Module, upright: ModelOutput, turned: ModelOutput) -> Tensor:
        made = [at_least_float32(head(out.embedding)) for out in (upright, turned)]
        with full_precision(upright.embedding):
            return similarities(*made)

    @staticmethod
    def _upright_columns(batch: Batch) -> Tensor:
        """(3 B,) which column is the upright one of each rotated image."""
        return torch.arange(len(batch.label), device=batch.label.device).repeat(3)
