"""What can be asked of a training run. Imports nothing heavy, so that the command line answers at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hkd.errors import RequestError

Precision = Literal["fp32", "bf16", "fp16"]


def option(default: Any, help: str) -> Any:  # the word argparse uses
    """A field with the sentence that explains it on the command line."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training one network with cross-entropy. The defaults are the protocol of the paper's supplement."""

    run: str = option("runs/train", "the run folder")
    dataset: str = option("digits", "digits, cifar100, stl10, tiny-imagenet, imagenet or folder:PATH")
    data_root: str = option("data", "where data sets lie and are downloaded to")
    image_size: int | None = option(None, "resize images to squares of this side in pixels")
    limit_classes: int | None = option(None, "keep the first so many classes")
    limit_train: int | None = option(None, "keep the first so many training images of each class")

    flip: bool = option(True, "mirror training images at random, where the data set allows it (digits do not)")

    student: str | None = option(None, "zoo name, timm:NAME, torchvision:NAME or package.module:callable [resnet8]")
    teacher: str | None = option(None, "likewise")
    role: Literal["student", "teacher"] | None = option(None, "which of the two to train, where both are named")
    student_pretrained: bool = option(False, "start from the library's weights (timm:, torchvision:)")
    teacher_pretrained: bool = option(False, "start the teacher from the library's weights (timm:, torchvision:)")

    epochs: int = option(240, "passes over the training images")
    batch_size: int = option(64, "images a step")
    lr: float = option(0.05, "learning rate (the paper: 0.01 for MobileNetV2 and ShuffleNet students)")
    lr_decay: float = option(0.1, "what the learning rate is multiplied by at each milestone")
    milestones: tuple[float, ...] = option((0.625, 0.75, 0.875), "when, as parts of the run (150, 180, 210 of 240)")
    momentum: float = option(0.9, "of SGD")
    weight_decay: float = option(5e-4, "of SGD, on all parameters")

    seed: int = option(0, "of initial weights, order, augmentation and draws")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")
    compile: bool = option(False, "compile the networks with torch.compile")
    workers: int | None = option(None, "processes or threads that decode images; one a core, at most 8, if not given")
    tensorboard: bool = option(True, "write TensorBoard curves into the run folder")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "epochs", "batch_size", "image_size", "limit_train")
        _at_least(self, 2, "limit_classes")
        _at_least(self, 0, "seed", "workers", "weight_decay")
        if self.seed >= 2**32:
            raise RequestError(f"seed: expected a number below 2**32; got {self.seed}")
        for name in ("student", "teacher", "dataset", "run"):
            if getattr(self, name) == "":
                raise RequestError(f"{name}: expected a name; got an empty one")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RequestError(f"lr: expected a number above 0; got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise RequestError(f"momentum: expected a number in [0, 1); got {self.momentum}")
        if not 0 < self.lr_decay <= 1:
            raise RequestError(f"lr_decay: expected a factor in (0, 1]; got {self.lr_decay}")
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise RequestError(f"milestones: expected rising parts of the run in (0, 1); got {list(self.milestones)}")
        if self.precision not in get_args(Precision):
            raise RequestError(f"precision: expected one of {', '.join(get_args(Precision))}; got {self.precision!r}")

    def trained_role(self) -> Literal["student", "teacher"]:
        """Which of the two networks `train` trains: the one that is named, or the one that ``role`` says."""
        if self.role is not None:
            return self.role
        if self.student and self.teacher:
            raise RequestError(
                f"role: student {self.student} and teacher {self.teacher} are named; --role says which to train"
            )
        return "teacher" if self.teacher else "student"

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.lr_decay ** sum(epoch >= round(m * self.epochs) for m in self.milestones)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Distilling a student: γ CE + α KD + β method. Weights left open are the method's published ones."""

    run: str = option("runs/distill", "the run folder")
    teacher: str | None = option(None, "likewise [what the checkpoint says it is, or resnet20]")
    role: Literal["student", "teacher"] | None = field(default=None, init=False)
    teacher_checkpoint: str | None = option(None, "the teacher's weights; if not given, the teacher is trained first")
    method: str = option("hkd", "how to learn from the teacher: see `hkd list methods`")
    method_weight: float | None = option(None, "β, of the method's terms [the method's: hkd 3]")
    kd_weight: float | None = option(None, "α, of the classical term [the method's: hkd 1, which is HKD+KD; 0 is HKD]")
    ce_weight: float | None = option(None, "γ, of the cross-entropy [the method's: 1; kd .1]")
    teacher_lr: float | None = option(None, "learning rate of a teacher that is trained first [lr]")
    kd_temperature: float = option(4.0, "T of the classical term")
    settings: dict[str, Any] = field(default_factory=dict)
    """The method's own settings; on the command line --holistic.k and the like."""

    def check(self) -> None:
        super().check()
        _at_least(self, 0, "method_weight", "kd_weight", "ce_weight")
        if self.teacher_lr is not None and not (math.isfinite(self.teacher_lr) and self.teacher_lr > 0):
            raise RequestError(f"teacher_lr: expected a number above 0; got {self.teacher_lr}")
        if not self.kd_temperature > 0:
            raise RequestError(f"kd_temperature: expected a number above 0; got {self.kd_temperature}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Testing a network. What is left open is what the run folder of the checkpoint says."""

    checkpoint: str = option("", "a run folder, a .safetensors file, or a checkpoint of the field (.pth)")
    model: str | None = option(None, "the network in the file, where the file does not say")
    dataset: str | None = option(None, "digits, cifar100, stl10, tiny-imagenet, imagenet or folder:PATH")
    data_root: str | None = option(None, "where data sets lie and are downloaded to")
    image_size: int | None = option(None, "resize images to squares of this side in pixels")
    limit_classes: int | None = option(None, "keep the first so many classes")
    batch_size: int = option(256, "images a step")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the network; fp16 needs a GPU")
    workers: int | None = option(None, "processes or threads that decode images; one a core, at most 8, if not given")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "batch_size", "image_size")
        _at_least(self, 2, "limit_classes")
        _at_least(self, 0, "workers")
        if not self.checkpoint:
            raise RequestError("checkpoint: name a run folder or a file of weights")


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise RequestError(f"{name}: expected {least} or more; got {value}")
