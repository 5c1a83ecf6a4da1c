"""What training expects of a loader."""

import math
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

    The last batch of an epoch holds what remains. In training, a single image that would remain is skipped in that
    epoch: batch normalisation cannot learn from one. Which image it is changes with the order.

    Several processes share every training batch in equal parts, so that together they see what one would, and skip in
    an epoch what they cannot share so. The images of an evaluation are shared as a whole, one run of them to each.

    Attributes:
        count: N, images of the data set.
        size: B, images in a batch of all processes together in training, of each process in evaluation.
        train: whether for training.
        share: which part is this process's.
    """

    count: int
    size: int
    train: bool
    share: Share = Share()

    @property
    def images(self) -> int:
        """Images that all processes together see in an epoch."""
        each = self.share.processes
        if not self.train or self.count < 2 * each:  # too few to skip any
            return self.count
        last = self.count % self.size
        shared = last - last % each
        return self.count - last + (shared if shared >= 2 * each else 0)

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return math.ceil((self.images if self.train else self._evaluated(self.share.rank)) / self.size)

    def size_of(self, step: int) -> int:
        """Images in batch number ``step``, from 0, of all processes together; 0 after the last."""
        if self.train:
            return min(self.size, max(0, self.images - step * self.size))
        ranks = range(self.share.processes)
        return sum(min(self.size, max(0, self._evaluated(rank) - step * self.size)) for rank in ranks)

    def split(self, order: Tensor) -> Iterator[Tensor]:
        """This process's part of each batch, given all (N,) images in the order of an epoch."""
        if self.train:
            yield from map(self.share.of, torch.split(order[: self.images], self.size))
        else:
            yield from torch.split(self.share.of(order), self.size)

    def _evaluated(self, rank: int) -> int:
        """Images that a process evaluates, as :meth:`Share.of` parts them."""
        quotient, remainder = divmod(self.count, self.share.processes)
        return quotient + (rank < remainder)


class Loader(ABC):
    """Batches of normalised images on the device, epoch by epoch.

    Attributes:
        dataset: whose images come out.
        batches: how an epoch is cut; :meth:`Batches.size_of` says how many images a batch has.
        view_count: V, how many augmented views an image has.
        augmentation, padding: what decides the pixels of a view beside the image and the view's number.
        unrepeated: why an epoch shows images that no view's number stands for; empty where it does not.
        note: a line for the start of a run, or nothing.
    """

    dataset: Dataset
    batches: Batches
    view_count: int
    augmentation: str
    padding: int
    unrepeated: str = ""
    note: str = ""

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    @abstractmethod
    def used_views(self) -> Tensor:
        """The numbers of the views that training can show, (V',) int64."""

    @abstractmethod
    def images(self, index: Tensor, view: Tensor) -> Tensor:
        """Images in views, (B,) int64 each on the device: (B, 3, H, W) float, normalised."""

    @abstractmethod
    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        """The batches of one epoch after the first ``done``. The same number gives the same in the same order."""
