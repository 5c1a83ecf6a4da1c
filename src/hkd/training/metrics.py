"""Numbers that are summed where they arise and read once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.data.loader import Loader
from hkd.models.base import Model
from hkd.training.engine import Engine


class Sums:
    """Running sums on the device: adding does not wait for it, reading does, once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor], count: int) -> None:
        """Adds means over ``count`` images."""
        self._count += count
        for name, value in values.items():
            weighted = value.detach().float() * count
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted

    def means(self) -> dict[str, float]:
        """The means over all images added."""
        names = list(self._sums)
        if not names:
            return {}
        values = (torch.stack([self._sums[name] for name in names]) / self._count).tolist()
        return dict(zip(names, values, strict=True))


def accuracies(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 in percent, scalars. With fewer than five classes top-5 counts them all."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hit = ranked == label[:, None]
    return {"top1": 100 * hit[:, 0].float().mean(), "top5": 100 * hit.any(dim=1).float().mean()}


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a data set: accuracies in percent, mean cross-entropy, images seen."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.no_grad()
def evaluate_model(model: Model, loader: Loader, engine: Engine) -> Evaluation:
    """Runs a network over a data set. Leaves it in evaluation mode."""
    model.eval()
    sums = Sums()
    for batch in loader.epoch(0):
        with engine.autocast():
            logits = model(batch.image).logits.float()
        values = accuracies(logits, batch.label) | {"loss": F.cross_entropy(logits, batch.label)}
        sums.add(values, len(batch.label))
    return Evaluation(**sums.means(), images=len(loader.dataset))
