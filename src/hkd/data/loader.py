"""What training asks of a loader."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hkd.data.base import Dataset
from hkd.types import Batch, Share


@dataclass(frozen=True)
class Batches:
    """How the images of an epoch are cut into batches, and these shared between processes.

    The last batch of an epoch holds what is left. In training, a single image that would be left is skipped in that
    epoch: batch normalisation cannot learn from one. Which image it is changes with the order.

    Several processes share every training batch in equal parts, so that together they see what one would, and skip in
    an epoch what they cannot share so. The images of an evaluation are shared as a whole, one run of them to each.

    Attributes:
        count: N, images of the data set.
        size: B, images in a batch of all processes together.
        train: whether for training.
        share: which part is this process's.
    """

    count: int
    size: int
    train: bool
    share: Share = Share()

    @property
    def images(self) -> int:
        """In an epoch, of all processes together."""
        each = self.share.processes
        if not self.train or self.count <= each:
            return self.count
        left = self.count % self.size
        shared = left - left % each
        return self.count - left + (shared if shared >= 2 * each else 0)

    def __len__(self) -> int:
        own = self.images if self.train else len(self.share.of(torch.arange(self.count)))
        return math.ceil(own / self.size)

    def own(self, order: Tensor) -> Iterator[Tensor]:
        """This process's part of each batch, given all (N,) images in the order of an epoch."""
        if self.train:
            yield from map(self.share.of, torch.split(order[: self.images], self.size))
        else:
            yield from torch.split(self.share.of(order), self.size)


class Loader(ABC):
    """Batches of normalised images on the device, epoch by epoch.

    Attributes:
        dataset: whose images come out.
        batches: how an epoch is cut.
    """

    dataset: Dataset
    batches: Batches

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    @abstractmethod
    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, but for the first ``done``. The same number gives the same in the same order."""


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """The randomness of one epoch, which needs no state of the epochs before it."""
    return torch.Generator(device).manual_seed(random.Random(f"epoch {seed} {epoch}").getrandbits(63))
