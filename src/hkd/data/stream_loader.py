"""Large data sets stream: workers decode and crop files, the device normalises."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hkd.data import augment
from hkd.data.balance import times_before
from hkd.data.base import FileDataset
from hkd.data.image_copy import ImageCopy, open_copy, shrunken_side
from hkd.data.images import Pixels, random_crop, random_resized_crop, to_tensor
from hkd.data.loader import Batches, Loader
from hkd.data.order import EpochOrder
from hkd.data.policy import Augmentation, altered, view_keys
from hkd.data.randomness import draws
from hkd.errors import RequestError
from hkd.types import Batch, Share

Shown = TypeVar("Shown")
Key = tuple[int, int, int | None]
"""View, index and turn of an image: the epoch, and :data:`AGAIN` for each time that the epoch has shown it before. The
strong view is drawn by it; without a turn there is none."""
AGAIN = 2**32
USUAL = Augmentation()


class StreamLoader(Loader):
    """Batches of a data set that stays in its files, with the usual ImageNet augmentation.

    For training, an image whose shorter side is more than twice the size of the network is shrunken to that. A random
    part of it (8 to 100 % of its area, aspect 3:4 to 4:3) is scaled to the size of the network and mirrored at random;
    another :class:`hkd.data.policy.Augmentation` may crop otherwise, and has operations on top of that. Shrunken images
    are kept on disk, so that later epochs need not decode: all epochs crop the same pixels. For evaluation the shorter
    side is scaled to 8/7 of the network's size, and the middle is cut out. An image has V views, and view v of it has
    the same pixels in every run; epochs show them in turn, from a start that depends on seed and image, so that with V
    epochs or more an image is shown in all of them.

    Args:
        dataset: what to load.
        batch_size: B; the last batch of an epoch holds what remains, see :class:`Batches`.
        device: where batches go; they travel as uint8.
        image_size: side in pixels of what the network sees.
        train: augment and shuffle.
        flip: whether training may mirror images at all.
        seed: of the order, and of which view an epoch shows.
        views: V.
        workers: processes that decode; 0 decodes in this one.
        share: which part of every batch is this process's.
        bad_images: "skip" to show the next readable image in the place of one that is not.
        cache: folder for the copy of the shrunken training images, see :class:`hkd.data.image_copy.ImageCopy`; None
            keeps none.
        cache_gb: the most that the copy may take; 0 keeps none.
        strong: whether training has a second view of each image, which is cropped and mirrored by draws of its own, of
            the seed, the epoch and the image, and then changed as :func:`hkd.data.augment.strong` does.
        balance, unlabelled_share: which images an epoch of training shows, see :class:`hkd.data.order.EpochOrder`. An
            image that it shows again has the next view.
        augmentation: how training images are cropped, and the operations on top of that.
    """

    def __init__(
        self, dataset: FileDataset, batch_size: int, device: torch.device, *, image_size: int, train: bool,
        flip: bool = True, seed: int = 0, views: int = 240, workers: int = 0,
        share: Share = Share(), bad_images: str = "stop",  # noqa: B008  (immutable)
        cache: Path | None = None, cache_gb: float = 20.0, strong: bool = False, balance: bool = False,
        unlabelled_share: float | None = None, augmentation: Augmentation = USUAL,
    ) -> None:  # fmt: skip
        self.dataset = dataset
        order = EpochOrder(dataset.labels, seed, batch_size, balance=balance, unlabelled_share=unlabelled_share)
        self.batches = Batches(order.count if train else len(dataset), batch_size, train, share)
        self.device = device
        self.view_count = views
        self._order = _Keys(self.batches, dataset, order if train else None, views)
        copy = None
        if train and cache is not None and cache_gb > 0:
            copy, self.note = open_copy(dataset, shrunken_side(image_size), cache, cache_gb)
        self._views = _Views(dataset, image_size, flip and dataset.info.flip, train, bad_images == "skip", copy)
        self._views.strong_seed = seed if strong and train else None
        self._views.augmentation = augmentation
        self.augmentation = augmentation.name(in_memory=False, flip=self._views.flip)
        self.padding = 0 if augmentation.resizes(in_memory=False) else image_size // 8
        self._loader = DataLoader(
            self._views,
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_new_session,
            generator=torch.Generator().manual_seed(seed),  # a draw from torch's own would move what dropout draws
        )
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in dataset.info.normalisation)
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        self._order.epoch, self._order.done = number, done
        for image, label, index, view in self._decoded():
            there, shown = index.to(self.device, non_blocking=True), view.to(self.device, non_blocking=True)
            strong = self._normalised(image[:, 1]) if image.shape[1] == 2 else None
            first = self._normalised(image[:, 0])
            batch = Batch(first, label.to(self.device, non_blocking=True), there, strong=strong)
            yield replace(batch, view=shown, place=(index, view)) if self._order.order is not None else batch

    def used_views(self) -> Tensor:
        return torch.arange(self.view_count)

    def images(self, index: Tensor, view: Tensor) -> Tensor:
        keys = zip(view.tolist(), index.tolist(), strict=True)
        return self._normalised(torch.stack([self._views[view, index, None][0][0] for view, index in keys]))

    def _normalised(self, image: Tensor) -> Tensor:
        pixels = image.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self._shift, pixels.float(), self._scale)

    def __del__(self) -> None:
        """Ends the workers. That one was killed once it is not needed does not matter, and would print a traceback."""
        end = getattr(getattr(getattr(self, "_loader", None), "_iterator", None), "_shutdown_workers", None)
        with suppress(RuntimeError):
            if end is not None:
                end()

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        try:
            yield from self._loader
        except RequestError as error:  # from a worker it comes wrapped in that process's traceback
            message = str(error).strip().splitlines()[-1].removeprefix("hkd.errors.RequestError: ")
            raise RequestError(f"{message}; fix or remove it, or skip it with --bad-images skip") from None


def _new_session(worker: int) -> None:
    """Keeps a signal to the process group from the workers: the main process saves first, and then ends them.

    That it ends while a worker hands a batch over is no error of the worker's.
    """
    os.setsid()
    sys.excepthook = _hook_without_reader


def _hook_without_reader(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As usual, but for what multiprocessing's thread prints where the process that reads a batch is gone."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


class _Keys:
    """(view, index, turn) of the images of each batch: workers outlive an epoch and have to know which one it is."""

    def __init__(self, batches: Batches, dataset: FileDataset, order: EpochOrder | None, views: int) -> None:
        self.batches = batches
        self.order = order
        self.views = views
        self.starts = torch.zeros(len(dataset), dtype=torch.int64)
        if order is not None:
            drawn = draws(f"first view {order.seed}", dataset.positions) % np.uint64(views)
            self.starts = torch.from_numpy(drawn.astype(np.int64))
        self.epoch = 0
        self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        order = torch.arange(self.batches.count) if self.order is None else self.order(self.epoch)
        repeats = self.order is not None and self.order.repeats
        before = times_before(order) if repeats else torch.zeros_like(order)
        parts = zip(self.batches.split(order), self.batches.split(before), strict=True)
        for batch, again in islice(parts, self.done, None):
            views = (self.epoch + self.starts[batch] + again) % self.views
            turns = self.epoch + AGAIN * again
            yield list(zip(views.tolist(), batch.tolist(), turns.tolist(), strict=True))


class _Views(TorchDataset[tuple[Tensor, int, int, int]]):
    """What the network is shown of each image, uint8 (1, 3, size, size), or (2, ...) with its strong view."""

    strong_seed: int | None = None
    augmentation: Augmentation = USUAL

    def __init__(
        self, dataset: FileDataset, size: int, flip: bool, train: bool, skip_bad: bool = False,
        copy: ImageCopy | None = None,
    ) -> None:  # fmt: skip
        self.dataset = dataset
        self.size = size
        self.flip = flip
        self.train = train
        self.copy = copy
        self.positions = dataset.positions
        self.skip_bad = skip_bad
        self._warned: set[int] = set()

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int, int]:
        number, index, turn = key
        if self.train:
            pixels, index = self._readable(self._shrunken, index)
            views = [self._altered(self._cropped(pixels, f"view {int(self.positions[index])} {number}"), index, number)]
            if self.strong_seed is not None and turn is not None:
                views.append(self._strong(pixels, index, self.strong_seed, turn))
        else:
            image, index = self._readable(lambda number: self.dataset.prepared(number, self.size, "centre"), index)
            views = [to_tensor(image)]
        return torch.stack(views), int(self.dataset.labels[index]), index, number

    def _cropped(self, pixels: Pixels, name: str) -> Tensor:
        """A crop, mirrored or not, of the shrunken image; the name decides which."""
        generator = random.Random(name)
        if self.augmentation.resizes(in_memory=False):
            view = random_resized_crop(pixels, self.size, generator, self.augmentation.smallest)
        else:
            view = random_crop(pixels, self.size, generator)
        if self.flip and generator.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(view)

    def _altered(self, view: Tensor, index: int, number: int) -> Tensor:
        """A view after the operations of the policy, where there is one."""
        if self.augmentation.policy is None:
            return view
        key = view_keys(self.positions[index : index + 1], torch.tensor([number]))
        return altered(view[None], self.augmentation.policy, key)[0]

    def _strong(self, pixels: Pixels, index: int, seed: int, turn: int) -> Tensor:
        position = self.positions[index : index + 1]
        cropped = self._cropped(pixels, f"strong {seed} {turn} {int(position)}")
        return augment.strong(cropped[None], augment.strong_draws(seed, turn, position))[0]

    def _shrunken(self, index: int) -> Pixels:
        """The shrunken image, uint8 (H, W, 3), from the copy, or decoded and put there."""
        name = self.dataset.names[index]
        pixels = None if self.copy is None else self.copy.read(name)
        if pixels is None:
            pixels = np.asarray(self.dataset.decode(index, shrunken_side(self.size)))
            if self.copy is not None:
                self.copy.write(name, pixels)
        return pixels

    def _readable(self, read: Callable[[int], Shown], index: int) -> tuple[Shown, int]:
        """The image as ``read`` gives it, or the next one that can be read, and its index."""
        for ahead in range(len(self.dataset)):
            number = (index + ahead) % len(self.dataset)
            try:
                return read(number), number
            except RequestError as error:
                if not self.skip_bad or ahead + 1 == len(self.dataset):
                    raise
                if number not in self._warned:
                    print(f"warning: skipped, {error}", file=sys.stderr)
                    self._warned.add(number)
        raise AssertionError("an empty data set has no indices")
