"""What travels between data, models, methods and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

Channels = tuple[float, float, float]
"""A number for red, green and blue."""

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Mixture(NamedTuple):
    """What was mixed into the images of a batch, from others of them.

    Attributes:
        label: (B,) int64 their classes; -1 where an image has none.
        weight: a scalar, their part of each mixed image, up to 1/2.
    """

    label: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Batch:
    """Some images of a data set.

    Attributes:
        image: (B, 3, H, W) float, normalised by the channel means and deviations of the data set.
        label: (B,) int64 classes; -1 where an image has none.
        index: (B,) int64 positions in the data set, by which memory banks know an image again.
        view: (B,) int64 numbers of the augmented views, where they have any: (index, view) decides the pixels.
        place: index and view once more, on the CPU, for tables on disk: reading them must not wait for the device.
        strong: (B, 3, H, W) float, the strong view of the same images, normalised, for methods that need one.
        mixture: what was mixed into the images, where they are mixed; ``label`` and ``index`` are of the larger part.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    view: Tensor | None = None
    strong: Tensor | None = None
    place: tuple[Tensor, Tensor] | None = None
    mixture: Mixture | None = None


@dataclass(frozen=True)
class ModelOutput:
    """What a network sees in a batch.

    Attributes:
        logits: (B, C).
        embedding: (B, D), what enters the classifier.
        features: stage maps (B, c, h, w), the stem's first.
        preactivations: the same maps before their last ReLU. Empty where a network does not tell them.
        pooled: (B, D, h, w), the map whose average over (h, w) is the embedding; None where there is none. A network
            that has one classifies other vectors (D) with :meth:`hkd.models.Model.classify`.
    """

    logits: Tensor
    embedding: Tensor
    features: tuple[Tensor, ...] = ()
    preactivations: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None

    def detach(self) -> ModelOutput:
        """The same values, through which no gradient flows."""
        return ModelOutput(
            self.logits.detach(),
            self.embedding.detach(),
            tuple(feature.detach() for feature in self.features),
            tuple(feature.detach() for feature in self.preactivations),
            None if self.pooled is None else self.pooled.detach(),
        )


class Share(NamedTuple):
    """Which of several processes that train together this is.

    Attributes:
        rank: its number, from 0.
        processes: how many there are.
    """

    rank: int = 0
    processes: int = 1

    def of(self, values: Tensor) -> Tensor:
        """This process's part of (n, ...) values: one of ``processes`` pieces in order, alike in length up to one."""
        return values.tensor_split(self.processes)[self.rank]
