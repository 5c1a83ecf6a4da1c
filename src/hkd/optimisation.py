"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hkd.options import option, recorded


@dataclass(frozen=True, kw_only=True)
class OptimisationSpec:
    """How the loss is minimised. The defaults are the protocol of the paper's supplement: SGD with step decay."""

    epochs: int = option(240, "passes over the training images", ge=1, le=1_000_000)
    patience: int | None = option(
        None, "with --holdout: stop after so many epochs without a better evaluation", ge=1, le=10**6, neutral=None
    )
    batch_size: int = option(64, "images in a step, of all processes together", ge=2, le=2**20)
    accumulate: int = option(
        1, "equal parts in which a batch is computed, each with its own graphs", ge=1, le=2**20, neutral=1
    )
    scale_with_processes: bool = option(
        False, "multiply batch size and learning rate by the number of processes", neutral=False
    )
    optimizer: str = option("sgd", "sgd, or one of timm's: adamw, lamb, muon, nadamw, ...", neutral="sgd")
    lr: float = option(0.05, "learning rate (the paper: 0.01 for MobileNetV2 and ShuffleNet students)", gt=0)
    schedule: Literal["multistep", "cosine"] = option(
        "multistep", "the learning rate falls at milestones, or along a cosine, epoch by epoch", neutral="multistep"
    )
    lr_decay: float = option(0.1, "multistep: the learning rate is multiplied by this at each milestone", gt=0, le=1)
    milestones: tuple[float, ...] = option(
        (0.625, 0.75, 0.875), "multistep: when, as fractions of the run (150, 180, 210 of 240)", gt=0, lt=1
    )
    min_lr: float = option(0.0, "cosine: the learning rate to which it falls", ge=0, neutral=0.0)
    warmup_epochs: int = option(0, "epochs over which the learning rate rises to --lr", ge=0, le=10**6, neutral=0)
    momentum: float = option(0.9, "of optimisers that have one", ge=0, lt=1)
    weight_decay: float = option(5e-4, "of the optimiser", ge=0)
    decay_all: bool = option(True, "weight decay also on biases and norms, as in the paper", neutral=True)
    label_smoothing: float = option(
        0.0, "part of the cross-entropy's target that all classes share", ge=0, lt=1, neutral=0.0
    )
    clip_grad: float | None = option(None, "the largest norm of a step's gradient", gt=0, neutral=None)
    ema: float | None = option(
        None, "keep the student's moving average of this decay instead of the student", gt=0, lt=1, neutral=None
    )
    epochs_before: tuple[int, ...] = recorded((), "epochs_before", neutral=())
    """How many epochs the run had each time that it was given more, rising; see :meth:`RunFolder.extended`."""

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0: constant within an epoch.

        In the first w = ``warmup_epochs`` it is lr (epoch + 1) / w. A cosine then falls from lr towards min_lr:

            min_lr + (lr - min_lr) (1 + cos(pi (epoch - w) / (epochs - w))) / 2

        Where a run was given more epochs, those of before have the rate that they had.
        """
        epochs = next((before for before in self.epochs_before if epoch < before), self.epochs)
        if epoch < self.warmup_epochs:
            return self.lr * (epoch + 1) / self.warmup_epochs
        if self.schedule == "multistep":
            return self.lr * self.lr_decay ** sum(epoch >= round(m * epochs) for m in self.milestones)
        done = (epoch - self.warmup_epochs) / max(1, epochs - self.warmup_epochs)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2
