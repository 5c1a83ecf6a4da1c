"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from hkd.options import option


@dataclass(frozen=True, kw_only=True)
class OptimisationSpec:
    """SGD with step decay. The defaults are the protocol of the paper's supplement."""

    epochs: int = option(240, "passes over the training images", ge=1, le=1_000_000)
    batch_size: int = option(64, "images in a step, of all processes together", ge=2, le=2**20)
    scale_with_processes: bool = option(
        False, "multiply batch size and learning rate by the number of processes", neutral=False
    )
    lr: float = option(0.05, "learning rate (the paper: 0.01 for MobileNetV2 and ShuffleNet students)", gt=0)
    lr_decay: float = option(0.1, "the learning rate is multiplied by this at each milestone", gt=0, le=1)
    milestones: tuple[float, ...] = option(
        (0.625, 0.75, 0.875), "when, as fractions of the run (150, 180, 210 of 240)", gt=0, lt=1
    )
    momentum: float = option(0.9, "of SGD", ge=0, lt=1)
    weight_decay: float = option(5e-4, "of SGD, on all parameters", ge=0)

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.lr_decay ** sum(epoch >= round(m * self.epochs) for m in self.milestones)
