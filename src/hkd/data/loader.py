"""What training asks of a loader."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from hkd.data.base import Dataset
from hkd.types import Batch


class Loader(ABC):
    """Batches of normalised images on the device, epoch by epoch.

    The last batch of an epoch holds what is left. In training, a single image that would be left is skipped in that
    epoch: batch normalisation cannot learn from one. Which image it is changes with the order.

    Attributes:
        dataset: whose images come out.
        batch_size: B.
        train: whether images are shuffled and augmented.
    """

    dataset: Dataset
    batch_size: int
    train: bool

    @property
    def images_per_epoch(self) -> int:
        count = len(self.dataset)
        return count - 1 if self.train and count > 1 and count % self.batch_size == 1 else count

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.images_per_epoch / self.batch_size)

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch. The same number gives the same batches in the same order."""


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """The randomness of one epoch, which needs no state of the epochs before it."""
    return torch.Generator(device).manual_seed(random.Random(f"epoch {seed} {epoch}").getrandbits(63))
