"""What training asks of a loader."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from hkd.data.base import Dataset
from hkd.types import Batch, Share


class Loader(ABC):
    """Batches of normalised images on the device, epoch by epoch.

    The last batch of an epoch holds what is left. In training, a single image that would be left is skipped in that
    epoch: batch normalisation cannot learn from one. Which image it is changes with the order.

    Several processes share every training batch in equal parts, so that together they see what one would, and skip in
    an epoch what they cannot share so. The images of an evaluation are shared as a whole, one run of them to each.

    Attributes:
        dataset: whose images come out.
        batch_size: B, of all processes together.
        train: whether images are shuffled and augmented.
        share: which part is this process's.
    """

    dataset: Dataset
    batch_size: int
    train: bool
    share: Share

    @property
    def images_per_epoch(self) -> int:
        """Of all processes together."""
        count, each = len(self.dataset), self.share.processes
        if not self.train or count <= each:
            return count
        left = count % self.batch_size
        shared = left - left % each
        return count - left + (shared if shared >= 2 * each else 0)

    def __len__(self) -> int:
        """Batches in an epoch."""
        own = self.images_per_epoch if self.train else len(self.share.of(torch.arange(len(self.dataset))))
        return math.ceil(own / self.batch_size)

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch. The same number gives the same batches in the same order."""

    def own(self, order: Tensor) -> Iterator[Tensor]:
        """This process's part of each batch of an epoch, given the (N,) images of the epoch in order."""
        if self.train:
            yield from map(self.share.of, torch.split(order[: self.images_per_epoch], self.batch_size))
        else:
            yield from torch.split(self.share.of(order), self.batch_size)


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """The randomness of one epoch, which needs no state of the epochs before it."""
    return torch.Generator(device).manual_seed(random.Random(f"epoch {seed} {epoch}").getrandbits(63))
