"""Which networks take part in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hkd.options import option, recorded

STUDENT, TEACHER = "resnet8", "resnet20"
"""The networks where none is named."""


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """The network that is trained. Its architecture has a digest only where it is no name but somebody's module."""

    name: str | None = option(
        None, "zoo name, timm:NAME, torchvision:NAME or package.module:callable [resnet8]", flat="student"
    )
    pretrained: bool = option(
        False, "start from the library's weights (timm:, torchvision:)", flat="student_pretrained"
    )
    weights: str | None = option(
        None,
        "start from the weights in this file (.safetensors, .pth); another head than the data's is replaced",
        key=False,
        flat="student_weights",
    )
    train: Literal["all", "head"] = option(
        "all",
        "all: the whole network; head: a linear head on its features, computed once (hkd train)",
        neutral="all",
        flat="student_train",
    )
    digest: str = recorded("", "student_digest")
    weights_digest: str = recorded("", "student_weights_digest", neutral="")


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """The frozen network that it learns from.

    ``digest`` says which weights teach: ``run KEY SEED`` for a trained run, ``weights SHA256`` for a file or a module,
    empty for a teacher that the run trains itself, with its own data, schedule and seed. ``weights_digest`` says the
    same of the file that the teacher starts from.
    """

    name: str | None = option(None, "as --student [what the checkpoint says it is, or resnet20]", flat="teacher")
    pretrained: bool = option(
        False, "start the teacher from the library's weights (timm:, torchvision:)", flat="teacher_pretrained"
    )
    checkpoint: str | None = option(
        None,
        "a trained teacher: a run folder or a file of weights; with --teacher once for each of several [trained first]",
        key=False,
        flat="teacher_checkpoint",
    )
    weights: str | None = option(
        None,
        "as --student-weights; a teacher whose head is replaced is trained first",
        key=False,
        flat="teacher_weights",
    )
    train: Literal["all", "head"] = option(
        "all",
        "how a teacher is trained first. head: a linear head on its features, computed once; minutes",
        neutral="all",
        flat="teacher_train",
    )
    image_size: int | None = option(
        None,
        "the teacher sees the student's crops resized to this side, in its own normalisation [as the student]",
        ge=2,
        le=4096,
        neutral=None,
        flat="teacher_image_size",
    )
    lr: float | None = option(
        None, "learning rate of a teacher that is trained first [--lr]", gt=0, neutral=None, flat="teacher_lr"
    )
    digest: str = recorded("", "teacher_digest")
    weights_digest: str = recorded("", "teacher_weights_digest", neutral="")
