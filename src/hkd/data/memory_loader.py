"""Batches of data sets that live in memory, augmented in whole batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.data import augment
from hkd.data.balance import REPEATED, times_before
from hkd.data.base import ArrayDataset
from hkd.data.loader import Batches, Loader
from hkd.data.order import EpochOrder
from hkd.data.policy import Augmentation, altered, view_keys
from hkd.data.randomness import draws
from hkd.data.resized_crop import drawn_boxes, resized
from hkd.types import Batch, Share


class MemoryLoader(Loader):
    r"""Batches of a data set that lives on the device as uint8.

    For training, each image is padded by an eighth of its side with black (4 pixels at 32, the protocol of the field),
    cropped at random, and mirrored at random where that keeps its class; one gather crops a whole batch. With p pixels
    of padding, view v = (top (2p + 1) + left) 2 + flip of an image has the same pixels in every run. Which view an
    image gets depends on the seed, the epoch and the image's row in the whole split alone: not on the batch size, the
    device, the number of processes, or which other images take part. For evaluation images come as they are, in order.

    Under every other augmentation than that crop an image has V views, whose crop and operations depend on the image's
    row and the view's number alone; epochs show them in turn, as :class:`hkd.data.StreamLoader` does.

    Args:
        dataset: what to load.
        batch_size: B; the last batch of an epoch holds what remains, see :class:`Batches`.
        device: where images live and batches are made.
        train: augment and shuffle.
        flip: whether training may mirror images at all.
        seed: of order and augmentation; epoch e is the same whenever it is loaded.
        share: which part of every batch is this process's.
        strong: whether training has a second view of each image, which is cropped and mirrored by draws of its own and
            then changed as :func:`hkd.data.augment.strong` does.
        balance, unlabelled_share: which images an epoch of training shows, see :class:`hkd.data.order.EpochOrder`. An
            image that it shows again has another view.
        augmentation: how training images are cropped, and the operations on top of that.
        views: V.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int,
        device: torch.device,
        *,
        train: bool,
        flip: bool = True,
        seed: int = 0,
        share: Share = Share(),  # noqa: B008  (immutable)
        strong: bool = False,
        balance: bool = False,
        unlabelled_share: float | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  (immutable)
        views: int = 240,
    ) -> None:
        self.dataset = dataset
        self._order = EpochOrder(dataset.labels, seed, batch_size, balance=balance, unlabelled_share=unlabelled_share)
        self.batches = Batches(self._order.count if train else len(dataset), batch_size, train, share)
        self.device = device
        self.train = train
        self.flip = flip and dataset.info.flip
        self.seed = seed
        self.strong = strong and train
        self.size = dataset.images.shape[2]
        self._policy = augmentation.policy if train else None
        self._smallest = augmentation.smallest if train and augmentation.resizes(in_memory=True) else None
        self.padding = self.size // 8 if train and self._smallest is None else 0
        self._crops = 2 * (2 * self.padding + 1) ** 2
        self._in_turn = self._policy is not None or self._smallest is not None
        self.view_count = views if self._in_turn else self._crops
        self.augmentation = augmentation.name(in_memory=True, flip=self.flip)
        self.labels = dataset.labels.to(device)
        padded = F.pad(dataset.images, (self.padding,) * 4)
        # NHWC, which is channels-last for the network. Every window of the padded image is a view of its memory:
        # (N, offsets, offsets, side, side, 3).
        pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)
        windows = pixels.unfold(1, self.size, 1).unfold(2, self.size, 1)
        self._windows = windows.permute(0, 1, 2, 4, 5, 3)
        mean, std = (torch.tensor(v, device=device) for v in dataset.info.normalisation)
        # x / 255 -> (x - mean) / std in one multiply-add over whole rows of pixels
        self._scale = (1 / (255 * std)).repeat(self.size)
        self._shift = (-mean / std).repeat(self.size)

    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        if not self.train:
            for index in islice(self.batches.split(torch.arange(len(self.dataset), device=self.device)), done, None):
                yield Batch(self.images(index, None), self.labels[index], index)
            return
        order = self._order(number)
        rows = self.dataset.positions[order]
        if self._order.repeats:
            rows = rows + REPEATED * times_before(order)
        views = self._views_of(number, rows)
        drawn = augment.strong_draws(self.seed, number, rows) if self.strong else None
        parts = [order.to(self.device), views.to(self.device), order, views, torch.arange(len(order))]
        for index, view, here, shown, turn in islice(zip(*map(self.batches.split, parts), strict=True), done, None):
            strong = None if drawn is None else self._strong(index, drawn[turn])
            image = self._normalised(self._pixels(index, view, here, shown))
            yield Batch(image, self.labels[index], index, view, strong, (here, shown))

    def used_views(self) -> Tensor:
        """The views that training can show, (V',) int64."""
        return torch.arange(0, self.view_count, 1 if self.flip or self._in_turn else 2)

    def views(self, epoch: int) -> Tensor:
        """Which view each image gets in an epoch of training: (N,) int64, on the CPU.

        The last bit of a plain crop's number is the mirroring.
        """
        return self._views_of(epoch, self.dataset.positions)

    def _views_of(self, epoch: int, rows: Tensor) -> Tensor:
        count = self.view_count
        if self._in_turn:
            first = draws(f"first view {self.seed}", rows % REPEATED) % np.uint64(count)
            return (epoch + rows // REPEATED + torch.from_numpy(first.astype(np.int64))) % count
        drawn = draws(f"views {self.seed} {epoch}", rows) % np.uint64(count)
        views = torch.from_numpy(drawn.astype(np.int64))
        return views if self.flip else views - views % 2

    def images(self, index: Tensor, view: Tensor | None) -> Tensor:
        """Images in views, (B,) each: (B, 3, H, W) in channels-last order, cropped, mirrored and normalised."""
        if view is None:
            return self._normalised(self._windows[index, 0, 0])
        place = (index.cpu(), view.cpu()) if self._in_turn else (index, view)
        return self._normalised(self._pixels(index, view, *place))

    def _strong(self, index: Tensor, drawn: Tensor) -> Tensor:
        """Images in the strong views that were drawn for them, (B, 8) on the CPU; as :meth:`images` gives them."""
        pixels = augment.strong(self._drawn(index, drawn[:, 0]).permute(0, 3, 1, 2), drawn)
        return self._normalised(pixels.permute(0, 2, 3, 1).contiguous())

    def _pixels(self, index: Tensor, view: Tensor, rows: Tensor, views: Tensor) -> Tensor:
        """Images in views, which are given a second time on the CPU: uint8 (B, side, side, 3)."""
        if not self._in_turn:
            return self._cropped(index, view)
        keys = view_keys(self.dataset.positions[rows], views)
        pixels = self._drawn(index, torch.from_numpy((draws("crop", keys) >> np.uint64(1)).astype(np.int64)))
        if self._policy is not None:
            pixels = altered(pixels.permute(0, 3, 1, 2), self._policy, keys).permute(0, 2, 3, 1).contiguous()
        return pixels

    def _drawn(self, index: Tensor, drawn: Tensor) -> Tensor:
        """Images in the crops that 63 random bits each, (B,) on the CPU, decide: uint8 (B, side, side, 3)."""
        view = drawn % self._crops
        view = (view if self.flip else view - view % 2).to(self.device, non_blocking=True)
        if self._smallest is None:
            return self._cropped(index, view)
        return self._mirrored(
            resized(self._windows[:, 0, 0], index, drawn_boxes(drawn, self.size, self._smallest)), view
        )

    def _cropped(self, index: Tensor, view: Tensor) -> Tensor:
        """Images in plain crops of those numbers."""
        offset, offsets = view // 2, 2 * self.padding + 1
        return self._mirrored(self._windows[index, offset // offsets, offset % offsets], view)

    def _mirrored(self, pixels: Tensor, view: Tensor) -> Tensor:
        return torch.where((view % 2 == 1).view(-1, 1, 1, 1), pixels.flip(2), pixels) if self.flip else pixels

    def _normalised(self, pixels: Tensor) -> Tensor:
        rows = pixels.view(len(pixels), self.size, self.size * 3).float()
        normalised = torch.addcmul(self._shift, rows, self._scale)
        return normalised.view(len(pixels), self.size, self.size, 3).permute(0, 3, 1, 2)
