"""From the name of a data set to its images, and to batches of them."""

from __future__ import annotations

from pathlib import Path

import torch

from hkd.data import cifar100, digits, stl10, tiny_imagenet  # noqa: F401  (each registers its data set)
from hkd.data.base import STREAM_SIZE, ArrayDataset, Dataset, FileDataset, datasets
from hkd.data.decode import fits_in_memory, in_memory
from hkd.data.folder import folder
from hkd.data.loader import Loader
from hkd.data.memory_loader import MemoryLoader
from hkd.data.stream_loader import StreamLoader
from hkd.errors import RequestError, unknown
from hkd.types import Share


def load_dataset(name: str, split: str = "train", root: str | Path = "data", image_size: int | None = None) -> Dataset:
    """Opens a data set.

    Args:
        name: one of :func:`list_datasets`, or ``folder:PATH``.
        split: "train", or "test" (also "val"); stl10 has "unlabeled" besides.
        root: where data sets are stored and downloaded to. ``folder:PATH`` does not need it.
        image_size: resize to squares of this side in pixels; None leaves images as they are.

    Returns:
        A data set with ``len(data)``, ``data[i] -> (uint8 (3, H, W), label, i)``, ``data.labels`` and ``data.info``.

    Raises:
        RequestError: the name or split is unknown, or the data is missing or corrupt.
    """
    if image_size is not None and image_size < 1:
        raise RequestError(f"image_size: expected a side of at least 1 pixel; got {image_size}")
    kind, colon, path = name.partition(":")
    if kind == "folder":
        if not colon or not path:
            raise RequestError(f"dataset: expected a folder with its path, folder:PATH; got {name!r}")
        return folder(Path(path).expanduser(), split, image_size, name)
    if name not in datasets:
        raise unknown("dataset", name, list_datasets())
    dataset = datasets[name](split, Path(root).expanduser(), image_size)
    if not isinstance(dataset, ArrayDataset | FileDataset):
        raise RequestError(
            f"dataset: expected an ArrayDataset or a FileDataset from the function of {name}; "
            f"got {type(dataset).__name__}, which hkd.as_dataset may convert"
        )
    return dataset


def list_datasets() -> list[str]:
    """The names of the data sets."""
    return [*sorted(datasets), "folder:PATH"]


def prepare(dataset: Dataset, cache: Path | None = None, workers: int = 1, bad_images: str = "stop") -> Dataset:
    """Decodes a small data set into memory; a large one stays in its files. See :func:`hkd.data.decode.in_memory`."""
    return in_memory(dataset, cache, workers, bad_images) if fits_in_memory(dataset) else dataset


def make_loader(
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    *,
    train: bool,
    flip: bool = True,
    seed: int = 0,
    workers: int = 0,
    share: Share = Share(),  # noqa: B008  (immutable)
    bad_images: str = "stop",
) -> Loader:
    """The loader that suits a prepared data set; see :class:`MemoryLoader` and :class:`StreamLoader`."""
    if isinstance(dataset, ArrayDataset):
        return MemoryLoader(dataset, batch_size, device, train=train, flip=flip, seed=seed, share=share)
    assert isinstance(dataset, FileDataset)
    size = dataset.info.image_size or STREAM_SIZE
    return StreamLoader(
        dataset, batch_size, device, image_size=size, train=train, flip=flip, seed=seed, workers=workers, share=share,
        bad_images=bad_images,
    )  # fmt: skip
