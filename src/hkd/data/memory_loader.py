"""Small data sets live in memory: decoded once, kept on disk, augmented in whole batches on the device."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.data.base import LARGEST_IN_MEMORY, ArrayDataset, Dataset, FileDataset
from hkd.data.loader import Batches, Loader, epoch_generator
from hkd.errors import RequestError
from hkd.types import Batch, Share

LARGEST_BYTES = 4 * 2**30


def fits_in_memory(dataset: Dataset) -> bool:
    """Whether a data set is small enough to live in memory: squares of at most 96 pixels, 4 GiB in all."""
    size = dataset.info.image_size
    if isinstance(dataset, ArrayDataset):
        return True
    return size is not None and size <= LARGEST_IN_MEMORY and 3 * size * size * len(dataset) <= LARGEST_BYTES


def in_memory(dataset: Dataset, cache: Path | None = None, workers: int = 1, bad_images: str = "stop") -> ArrayDataset:
    """Decodes a data set whose images have one size.

    Args:
        cache: folder where the decoded images are kept, so that the next start reads one file; None to keep nothing.
        workers: threads that decode.
        bad_images: "skip" to leave out what cannot be read.

    Raises:
        RequestError: images cannot be read: says how many, and names some.
    """
    if isinstance(dataset, ArrayDataset):
        return dataset
    assert isinstance(dataset, FileDataset)
    path = None if cache is None else cache / f"{_fingerprint(dataset)}.safetensors"
    if path is not None and path.is_file():
        try:
            images = safetensors.torch.load_file(str(path))["images"]
            return ArrayDataset(images, dataset.labels, dataset.info)  # only whole data sets are kept
        except safetensors.SafetensorError:
            pass  # a cache cut short is made again
    size = dataset.info.image_size
    assert size is not None
    images = torch.empty(len(dataset), 3, size, size, dtype=torch.uint8)
    bad: list[int] = []

    def decode(index: int) -> None:
        try:
            images[index] = dataset.image(index)
        except RequestError:
            bad.append(index)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in pool.map(decode, range(len(dataset)), chunksize=64):
            pass
    if bad:
        bad.sort()
        names = ", ".join(dataset.names[n] for n in bad[:5]) + (", ..." if len(bad) > 5 else "")
        told = f"{len(bad)} of {len(dataset)} images in {dataset.files.path} cannot be read: {names}"
        if bad_images != "skip" or len(bad) == len(dataset):
            raise RequestError(f"dataset: {told}; mend or remove them, or leave them out with --bad-images skip")
        print(f"warning: left out, {told}", file=sys.stderr)
        kept = torch.ones(len(dataset), dtype=torch.bool)
        kept[bad] = False
        return ArrayDataset(images[kept], dataset.labels[kept], dataset.info)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")  # another run may be writing the same
        try:
            safetensors.torch.save_file({"images": images}, str(partial))
            partial.replace(path)
        except (OSError, safetensors.SafetensorError):  # it saves the next start time, no more
            partial.unlink(missing_ok=True)
    return ArrayDataset(images, dataset.labels, dataset.info)


def _fingerprint(dataset: FileDataset) -> str:
    digest = hashlib.sha256(f"{dataset.files.fingerprint} {dataset.info.image_size}\n".encode())
    digest.update("\n".join(dataset.names).encode())
    return digest.hexdigest()[:32]


class MemoryLoader(Loader):
    """Batches of a data set that lives on the device as uint8.

    For training, each image is padded by an eighth of its side with black (4 pixels at 32, the protocol of the field),
    cropped at random, and mirrored at random where that keeps its class; one gather crops a whole batch, and each image
    has its own offsets. For evaluation images come as they are, in order.

    Args:
        dataset: what to load.
        batch_size: B; the last batch of an epoch holds what is left, see :class:`Batches`.
        device: where images live and batches are made.
        train: augment and shuffle.
        flip: whether training may mirror images at all.
        seed: of order and augmentation; epoch e is the same whenever it is loaded.
        share: which part of every batch is this process's.
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
    ) -> None:
        self.dataset = dataset
        self.batches = Batches(len(dataset), batch_size, train, share)
        self.device = device
        self.train = train
        self.flip = flip and dataset.info.flip
        self.seed = seed
        self.share = share
        self.size = dataset.images.shape[2]
        self.padding = self.size // 8 if train else 0
        self.labels = dataset.labels.to(device)
        padded = F.pad(dataset.images, (self.padding,) * 4)
        # Pixels stand beside each other by channel (NHWC), which is channels-last for the network. Every window of the
        # padded image is a view: (N, offsets, offsets, side, side, 3).
        pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)
        windows = pixels.unfold(1, self.size, 1).unfold(2, self.size, 1)
        self._windows = windows.permute(0, 1, 2, 4, 5, 3)
        mean, std = (torch.tensor(v, device=device) for v in (dataset.info.mean, dataset.info.std))
        # x / 255 -> (x - mean) / std in one multiply-add over whole rows of pixels
        self._scale = (1 / (255 * std)).repeat(self.size)
        self._shift = (-mean / std).repeat(self.size)

    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        generator = epoch_generator(self.seed, number, self.device)
        count = len(self.dataset)
        if self.train:
            order = torch.randperm(count, generator=generator, device=self.device)
        else:
            order = torch.arange(count, device=self.device)
        for place, index in enumerate(self.batches.own(order)):
            fate = self._fate(len(index), generator) if self.train else None
            if place >= done:
                yield Batch(self._images(index, fate), self.labels[index], index)

    def _fate(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Offsets from top and left, and who is mirrored: (B,), (B,) and (B, 1, 1, 1)."""
        # Drawn for the images of all processes, so that an image meets the same fate however they are shared.
        everyone = count * self.share.processes
        offsets = 2 * self.padding + 1
        top, left = torch.randint(offsets, (2, everyone), generator=generator, device=self.device)
        if not self.flip:
            return self.share.of(top), self.share.of(left), None
        mirror = torch.rand(everyone, 1, 1, 1, generator=generator, device=self.device) < 0.5
        return self.share.of(top), self.share.of(left), self.share.of(mirror)

    def _images(self, index: Tensor, fate: tuple[Tensor, Tensor, Tensor | None] | None) -> Tensor:
        """(B, 3, H, W) in channels-last order, cropped, mirrored and normalised."""
        count = len(index)
        if fate is None:
            pixels = self._windows[index, 0, 0]
        else:
            top, left, mirror = fate
            pixels = self._windows[index, top, left]
            if mirror is not None:
                pixels = torch.where(mirror, pixels.flip(2), pixels)
        rows = pixels.view(count, self.size, self.size * 3).float()
        normalised = torch.addcmul(self._shift, rows, self._scale)
        return normalised.view(count, self.size, self.size, 3).permute(0, 3, 1, 2)
