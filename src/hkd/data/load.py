"""From the name of a data set to its images, and to batches of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hkd.data import cifar100, digits, stl10, tiny_imagenet  # noqa: F401  (each registers its data set)
from hkd.data.base import STREAM_SIZE, ArrayDataset, Dataset, FileDataset, datasets
from hkd.data.csv_file import csv_file
from hkd.data.decode import fits_in_memory, in_memory
from hkd.data.folder import folder
from hkd.data.images import check_size, images_at_once
from hkd.data.loader import Loader
from hkd.data.memory_loader import MemoryLoader
from hkd.data.mixing import MixedLoader
from hkd.data.policy import Augmentation
from hkd.data.stream_loader import StreamLoader
from hkd.errors import RequestError, unknown
from hkd.options import shown
from hkd.outside import as_path, has_controls, printable, whole_number
from hkd.types import Share

WITH_PATH = {"folder": "PATH", "csv": "FILE"}
"""Data sets that are named by their place, and what stands behind the colon."""


def load_dataset(name: str, split: str = "train", root: str | Path = "data", image_size: int | None = None) -> Dataset:
    """Opens a data set.

    Args:
        name: one of :func:`list_datasets`; of ``folder:PATH`` and ``csv:FILE`` with a path.
        split: "train", or "test" (also "val"); stl10 has "unlabeled" besides.
        root: where data sets are stored and downloaded to; not looked at where the name has a path.
        image_size: resize to squares of this side in pixels; None leaves images as they are.

    Returns:
        A data set with ``len(data)``, ``data[i] -> (uint8 (3, H, W), label, i)``, ``data.labels`` and ``data.info``.

    Raises:
        RequestError: the name or split is unknown, or the data is missing or corrupt.
    """
    check_size(image_size)
    if not isinstance(name, str) or has_controls(name):
        raise RequestError(f"dataset: expected a name without control characters; got {shown(name)}")
    root = as_path(root, "data_root")
    kind, colon, path = name.partition(":")
    if kind in WITH_PATH:
        word = WITH_PATH[kind]
        if not colon or not path:
            raise RequestError(f"dataset: expected {kind}:{word}; got {shown(name)}")
        opened = folder if kind == "folder" else csv_file
        return opened(Path(os.path.expanduser(path)), split, image_size, name)
    if name not in datasets:
        raise unknown("dataset", printable(name), list_datasets())
    dataset = datasets[name](split, Path(os.path.expanduser(root)), image_size)
    if not isinstance(dataset, ArrayDataset | FileDataset):
        raise RequestError(
            f"dataset: expected an ArrayDataset or a FileDataset from the function of {name}; "
            f"got {type(dataset).__name__}, which hkd.as_dataset may convert"
        )
    return dataset


def list_datasets() -> list[str]:
    """The names of the data sets."""
    return [*sorted(datasets), *(f"{kind}:{word}" for kind, word in WITH_PATH.items())]


def prepare(dataset: Dataset, cache: Path | None = None, workers: int = 1, bad_images: str = "stop") -> Dataset:
    """Decodes a small data set into memory; a large one stays in its files. See :func:`hkd.data.decode.in_memory`."""
    _check_dataset(dataset)
    return in_memory(dataset, cache, workers, bad_images) if fits_in_memory(dataset) else dataset


def _check_dataset(dataset: Any) -> None:
    """Raises :class:`RequestError` for what is no data set of this package."""
    if not isinstance(dataset, ArrayDataset | FileDataset):
        raise RequestError(
            f"dataset: expected an ArrayDataset or a FileDataset; got {type(dataset).__name__}, which hkd.as_dataset "
            "may convert"
        )


def make_loader(
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    *,
    train: bool,
    flip: bool = True,
    seed: int = 0,
    views: int = 240,
    workers: int = 0,
    share: Share = Share(),  # noqa: B008  (immutable)
    bad_images: str = "stop",
    cache: Path | None = None,
    cache_gb: float = 20.0,
    strong: bool = False,
    balance: bool = False,
    unlabelled_share: float | None = None,
    augment: str | None = None,
    min_crop: float | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Loader:
    """The loader that suits a prepared data set; see :class:`MemoryLoader` and :class:`StreamLoader`.

    ``cache`` and ``cache_gb`` are for streams. ``views`` are for all augmentations but the plain crops of images in
    memory, which have all the views that their padding gives. ``augment`` and ``min_crop`` are those of
    :class:`hkd.data.policy.Augmentation`; with ``mixup`` or ``cutmix`` above 0 training images are mixed as
    :class:`hkd.data.mixing.MixedLoader` does. Evaluation batches have fewer images where these are large.

    Raises:
        RequestError: it is no data set, or the batch size or the number of workers is no number from 1, or 0.
    """
    _check_dataset(dataset)
    whole_number("batch_size", batch_size, 1)
    whole_number("workers", workers, 0)
    augmentation = Augmentation(augment, min_crop)
    if not train:
        batch_size = min(batch_size, images_at_once(dataset.info.image_size or STREAM_SIZE))
    loader: Loader
    if isinstance(dataset, ArrayDataset):
        loader = MemoryLoader(
            dataset, batch_size, device, train=train, flip=flip, seed=seed, share=share, strong=strong,
            balance=balance, unlabelled_share=unlabelled_share, augmentation=augmentation, views=views,
        )  # fmt: skip
    else:
        assert isinstance(dataset, FileDataset)
        size = dataset.info.image_size or STREAM_SIZE
        loader = StreamLoader(
            dataset, batch_size, device, image_size=size, train=train, flip=flip, seed=seed, views=views,
            workers=workers, share=share, bad_images=bad_images, cache=cache, cache_gb=cache_gb, strong=strong,
            balance=balance, unlabelled_share=unlabelled_share, augmentation=augmentation,
        )  # fmt: skip
    return MixedLoader(loader, mixup, cutmix, seed) if train and (mixup or cutmix) else loader
