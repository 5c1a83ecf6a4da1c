"""What a data set is: images with a label and an index each, in memory or in files."""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hkd.data.files import Files
from hkd.data.images import open_image, preprocess, shrunken, to_rgb, to_tensor, unreadable
from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import printable
from hkd.registry import Registry
from hkd.types import IMAGENET_MEAN, IMAGENET_STD, Channels

LARGEST_IN_MEMORY = 96
"""Side in pixels of the largest images that are kept decoded; larger ones stream from their files."""

STREAM_SIZE = 224
"""Side in pixels at which streamed images are shown where none is asked for."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without looking at its images.

    Attributes:
        name: by which :func:`hkd.load_dataset` finds it.
        classes: their names; the position of a name is its label.
        mean, std: of the channels, for images scaled to [0, 1]; None where nobody published them. A run measures those
            from its training images, see :func:`hkd.data.open_data`.
        image_size: side in pixels of its square images; None where they vary.
        flip: whether a mirrored image keeps its class.
    """

    name: str
    classes: tuple[str, ...]
    mean: Channels | None = None
    std: Channels | None = None
    image_size: int | None = None
    flip: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def normalisation(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation as loaders use them: ImageNet's where they are not known."""
        return self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD


class OutOfRangeError(RequestError, IndexError):
    """An index that no image has. As an IndexError it ends a loop over a data set."""


class NoEvaluationSplitError(RequestError):
    """Images that nobody parted into those to train and those to evaluate on."""


class Dataset(ABC):
    """N images, each with a label and its index.

    Attributes:
        labels: (N,) int64 classes; -1 where an image has none.
        info: see :class:`DatasetInfo`.
        rows: (N,) int64 positions of the images in the whole split, of which this is a part; None for a whole split.
    """

    labels: Tensor
    info: DatasetInfo
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """The image as uint8 (3, H, W), its label, its index from 0: -1 is the last image.

        Raises:
            OutOfRangeError: there is no such image.
            RequestError: it is no whole number, or the image cannot be read.
        """
        try:
            position = range(len(self))[operator.index(index)]
        except TypeError:
            raise RequestError(f"index: expected a whole number; got {shown(index)}") from None
        except IndexError:
            raise OutOfRangeError(f"index: expected 0 to {len(self) - 1}; got {shown(index)}") from None
        return self.image(position), int(self.labels[position]), position

    @property
    def positions(self) -> Tensor:
        """``rows``, spelled out for a whole split: (N,) int64."""
        return torch.arange(len(self)) if self.rows is None else self.rows

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the labels and the images in memory, or the names and sizes of files; not with the folder."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """One image, uint8 (3, H, W)."""

    @abstractmethod
    def select(self, indices: Tensor, info: DatasetInfo) -> Dataset:
        """The data set of some of the images, in the given order, with their ``rows``."""


class ArrayDataset(Dataset):
    """Images of one size in memory.

    Args:
        images: uint8 (N, 3, S, S).
        labels: (N,).
        info: its ``image_size`` is replaced by S.
        rows: see :class:`Dataset`.

    Raises:
        RequestError: images or labels have another shape or type, or a label names no class.
    """

    def __init__(self, images: Tensor, labels: Tensor, info: DatasetInfo, rows: Tensor | None = None) -> None:
        is_array = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4
        square = is_array and images.shape[1] == 3 and images.shape[2] == images.shape[3] and images.numel() > 0
        if not square or (isinstance(labels, Tensor) and labels.shape[:1] != images.shape[:1]):
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            of_labels = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise RequestError(
                f"dataset: expected square uint8 images (N, 3, S, S) with N labels for {info.name}; "
                f"got {got} with {of_labels}; pass image_size to crop and resize"
            )
        self.labels = checked_labels(labels, len(images), info)
        self.images = images
        self.info = replace(info, image_size=images.shape[2])
        self.rows = rows

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def image(self, index: int) -> Tensor:
        return self.images[index]

    def select(self, indices: Tensor, info: DatasetInfo) -> ArrayDataset:
        return ArrayDataset(self.images[indices], self.labels[indices], info, self.positions[indices])


def checked_labels(labels: Any, count: int, info: DatasetInfo) -> Tensor:
    """The labels of ``count`` images as (N,) int64.

    Raises:
        RequestError: there are more or fewer, they are no whole numbers, or one names no class.
    """
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.is_complex():
        got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise RequestError(f"dataset: expected a tensor of {count:,} labels for {info.name}; got {got}")
    whole = labels.long()
    if not torch.equal(whole.to(labels.dtype), labels):
        raise RequestError(
            f"dataset: expected whole numbers as labels of {info.name}; got {labels[whole != labels][0].item()}"
        )
    low, high = int(whole.min()), int(whole.max())
    if not -1 <= low <= high < info.num_classes:
        raise RequestError(
            f"dataset: expected labels in [0, {info.num_classes - 1}], the {info.num_classes} classes of {info.name}, "
            f"or -1 for none; got {low} to {high}"
        )
    return whole


class FileDataset(Dataset):
    """Images in the files of a folder or a zip archive, decoded at each access.

    Args:
        files: the folder or archive.
        names: of the N files.
        labels: (N,).
        info: its ``image_size`` is what images are resized to, None to leave them as they are.
        rows: see :class:`Dataset`.
    """

    def __init__(
        self, files: Files, names: Sequence[str], labels: Tensor, info: DatasetInfo, rows: Tensor | None = None
    ) -> None:
        if not names:
            raise RequestError(f"dataset: no images of {info.name} in {files.path}")
        self.files = files
        self.names = list(names)
        self.labels = checked_labels(labels, len(self.names), info)
        self.info = info
        self.rows = rows

    @property
    def fingerprint(self) -> str:
        rows = zip(self.names, self.labels.tolist(), strict=True)
        text = "".join(f"{name}\0{label}\0{self.files.size(name)}\n" for name, label in rows)
        return hashlib.sha256(text.encode()).hexdigest()

    def decode(self, index: int, side: int | None = None) -> Image.Image:
        """One image as RGB, in its size, or shrunken to a shorter side of ``side`` pixels (:func:`shrunken`).

        Raises:
            RequestError: the file is not a readable image.
        """
        return self._read(index, lambda image: to_rgb(image) if side is None else shrunken(image, side))

    def prepared(self, index: int, size: int, crop: str) -> Image.Image:
        """One image as an evaluation shows it, see :func:`hkd.data.images.preprocess`.

        Raises:
            RequestError: the file is not a readable image.
        """
        return self._read(index, lambda image: preprocess(image, size, crop))

    def _read(self, index: int, make: Callable[[Image.Image], Image.Image]) -> Image.Image:
        name = self.names[index]
        try:
            return make(open_image(self.files.read(name)))
        except RequestError:
            raise
        except Exception as error:  # a decoder given a hostile file may raise anything
            place = printable(self.files.path / name, 4096)
            raise RequestError(f"dataset: cannot read {place} ({unreadable(error)})") from error

    def image(self, index: int) -> Tensor:
        size = self.info.image_size
        return to_tensor(self.decode(index) if size is None else self.prepared(index, size, "fit"))

    def select(self, indices: Tensor, info: DatasetInfo) -> FileDataset:
        names = [self.names[i] for i in indices.tolist()]
        return FileDataset(self.files, names, self.labels[indices], info, self.positions[indices])


Load = Callable[[str, Path, int | None], Dataset]
"""(split, root, image_size) -> data set. The splits are "train" and "test" or "val"; see :func:`check_split`."""

datasets: Registry[Load] = Registry("dataset", package="hkd.data", entry_points="hkd.datasets")
"""Data sets by name, without ``folder:PATH`` and ``csv:FILE``."""


def check_split(name: str, split: str, accepted: Sequence[str]) -> str:
    """The name that a data set itself gives a split: "test" and "val" are synonyms for the evaluation split.

    Raises:
        RequestError: the data set has no such split.
    """
    synonyms = {"val": "test", "test": "val"}
    for candidate in (split, synonyms.get(split, split)) if isinstance(split, str) else ():
        if candidate in accepted:
            return candidate
    raise RequestError(f"split: expected one of {', '.join(accepted)} for {name}; got {shown(split)}")
