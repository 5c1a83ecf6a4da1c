"""Sums over images, accuracies, and the evaluation of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.data.loader import Loader
from hkd.models.base import Model
from hkd.runtime.engine import Engine

COUNT = "images"
"""The name of the number of images among saved sums."""


class Sums:
    """Running sums on the device: adding does not wait for it, reading does, once."""

    def __init__(self, state: dict[str, Tensor] | None = None, engine: Engine | None = None) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        # What was saved is of all processes; one takes it, so that the sum over processes stays what it was.
        if state and engine is not None:
            mine = float(engine.is_main)
            self._sums = {name: mine * value.to(engine.device) for name, value in state.items() if name != COUNT}
            self._count = int(mine * state[COUNT])

    def state(self, engine: Engine) -> dict[str, Tensor]:
        """What was added so far in all processes, to be saved in the middle of an epoch."""
        return dict(zip([*self._sums, COUNT], self._totals(engine).cpu(), strict=True))

    def _totals(self, engine: Engine) -> Tensor:
        """The sums over all processes, and last how many images they are of."""
        count = torch.tensor(float(self._count), device=engine.device)
        return engine.sum(torch.stack([*(value.float() for value in self._sums.values()), count]))

    def add(self, sums: dict[str, Tensor], count: int = 0) -> None:
        """Adds scalars that are sums over ``count`` images, or more of the images that were counted before."""
        self._count += count
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()

    def mean_here(self, name: str) -> float:
        """The mean of one of the sums in this process, NaN where nothing is known. Waits for the device."""
        return float(self._sums[name]) / self._count if self._count and name in self._sums else math.nan

    def means(self, engine: Engine) -> dict[str, float]:
        """The means over all images added, in all processes."""
        *values, images = self._totals(engine).tolist()
        return {name: value / images for name, value in zip(self._sums, values, strict=True)} if images else {}


def ranked(logits: Tensor) -> Tensor:
    """The five most likely classes of each image, (B, 5), likeliest first; of fewer classes all."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def hits(ranked: Tensor, label: Tensor) -> dict[str, Tensor]:
    """How many images have their class among the first one and five, scalars."""
    hit = ranked == label[:, None]
    return {"top1": hit[:, 0].sum(), "top5": hit.any(dim=1).sum()}


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a data set.

    Attributes:
        top1, top5: accuracies in percent.
        loss: mean cross-entropy.
        images: N, how many were seen.
        predicted, label: (N,) int64 classes of each image, on the CPU.
        classes: their names; the position of a name is its label.
        source: which images they are, in words.
    """

    top1: float
    top5: float
    loss: float
    images: int
    predicted: Tensor
    label: Tensor
    classes: tuple[str, ...] = ()
    source: str = ""

    @property
    def by_class(self) -> tuple[Tensor, Tensor]:
        """How many images each class has, and how many of them are predicted right: (C,) int64 each."""
        count = max(len(self.classes), int(self.label.max()) + 1)
        right = self.label[self.predicted == self.label]
        return torch.bincount(self.label, minlength=count), torch.bincount(right, minlength=count)

    @property
    def balanced_accuracy(self) -> float:
        """The mean over the classes that have images of the part of these that is predicted right, in percent."""
        images, right = self.by_class
        there = images > 0
        return float(100 * (right[there].double() / images[there]).mean())

    def row(self) -> dict[str, float]:
        """As a line of ``metrics.jsonl`` has it."""
        return {"test_top1": self.top1, "test_top5": self.top5, "test_loss": self.loss}


@torch.no_grad()
def evaluate_model(model: Model, loader: Loader, engine: Engine) -> Evaluation:
    """Runs a network over a data set, each process over its part. Leaves it in evaluation mode."""
    model.eval()
    sums, predicted, label = Sums(), [], []
    for batch in loader.epoch(0):
        with engine.autocast():
            logits = model(batch.image).logits.float()
        loss = F.cross_entropy(logits, batch.label, reduction="sum")
        best = ranked(logits)
        sums.add(hits(best, batch.label) | {"loss": loss}, len(batch.label))
        predicted.append(best[:, 0])
        label.append(batch.label)
    means = sums.means(engine)
    return Evaluation(
        top1=100 * means["top1"],
        top5=100 * means["top5"],
        loss=means["loss"],
        images=len(loader.dataset),
        predicted=engine.concatenate(torch.cat(predicted)),
        label=engine.concatenate(torch.cat(label)),
        classes=loader.dataset.info.classes,
    )


@torch.no_grad()
def confident_classes(model: Model, loader: Loader, engine: Engine, confidence: float) -> Tensor:
    """The class that a network gives each image, (N,) int64 on the CPU; -1 where its probability is below
    ``confidence``. Leaves the network in evaluation mode."""
    model.eval()
    classes = []
    for batch in loader.epoch(0):
        with engine.autocast():
            logits = model(batch.image).logits.float()
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        classes.append(predicted.where(probability >= confidence, -1))
    return engine.concatenate(torch.cat(classes)).cpu()
