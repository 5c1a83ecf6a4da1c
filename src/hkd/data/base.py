"""What a data set is: images with a label and an index each, whether in memory or in files."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hkd.data.files import Files
from hkd.errors import RequestError
from hkd.registry import Registry
from hkd.types import IMAGENET_MEAN, IMAGENET_STD, Channels

LARGEST_IN_MEMORY = 96
"""Side in pixels of the largest images that are kept decoded; larger ones stream from their files."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without looking at its images.

    Attributes:
        name: by which :func:`hkd.load_dataset` finds it.
        classes: their names; the position of a name is its label.
        mean, std: of the channels, for images scaled to [0, 1].
        image_size: side in pixels of its square images; None where they vary.
        flip: whether a mirrored image keeps its class.
    """

    name: str
    classes: tuple[str, ...]
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    image_size: int | None = None
    flip: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class Dataset(ABC):
    """N images, each with a label and its index.

    Attributes:
        labels: (N,) int64 classes; -1 where an image has none.
        info: see :class:`DatasetInfo`.
    """

    labels: Tensor
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """The image as uint8 (3, H, W), its label, its index."""
        return self.image(index), int(self.labels[index]), index

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the images in memory, or the names and sizes of files, and labels; not with where they lie."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """One image, uint8 (3, H, W)."""

    @abstractmethod
    def select(self, indices: Tensor, info: DatasetInfo) -> Dataset:
        """The data set of some of the images, in the given order."""


class ArrayDataset(Dataset):
    """Images of one size in memory.

    Args:
        images: uint8 (N, 3, H, W).
        labels: (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor, info: DatasetInfo) -> None:
        square = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
        if images.dtype != torch.uint8 or not square or len(images) != len(labels) or len(images) == 0:
            raise RequestError(
                f"dataset: {info.name} needs square uint8 images (N, 3, S, S) with N labels; "
                f"got {images.dtype} {tuple(images.shape)} with {len(labels)}; pass image_size to crop and resize"
            )
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < info.num_classes:
            raise RequestError(
                f"dataset: the labels of {info.name} run from {int(labels.min())} to {int(labels.max())}, "
                f"and it names {info.num_classes} classes"
            )
        self.images = images
        self.labels = labels.long()
        self.info = replace(info, image_size=images.shape[2])

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def image(self, index: int) -> Tensor:
        return self.images[index]

    def select(self, indices: Tensor, info: DatasetInfo) -> ArrayDataset:
        return ArrayDataset(self.images[indices], self.labels[indices], info)


class FileDataset(Dataset):
    """Images in the files of a folder or a zip archive, decoded when they are asked for.

    Args:
        files: where they are.
        names: of the N files.
        labels: (N,).
        info: its ``image_size`` is what images are resized to, None to leave them as they are.
    """

    def __init__(self, files: Files, names: Sequence[str], labels: Tensor, info: DatasetInfo) -> None:
        if not names:
            raise RequestError(f"dataset: {info.name} has no images in {files.path}")
        self.files = files
        self.names = list(names)
        self.labels = labels.long()
        self.info = info

    @property
    def fingerprint(self) -> str:
        rows = zip(self.names, self.labels.tolist(), strict=True)
        text = "".join(f"{name}\0{label}\0{self.files.size(name)}\n" for name, label in rows)
        return hashlib.sha256(text.encode()).hexdigest()

    def decode(self, index: int) -> Image.Image:
        """One image as it is in its file, in RGB.

        Raises:
            RequestError: the file is no readable image.
        """
        name = self.names[index]
        try:
            return to_rgb(Image.open(io.BytesIO(self.files.read(name))))
        except RequestError:
            raise
        except Exception as error:  # a decoder given a hostile file may raise anything
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
            raise RequestError(f"dataset: cannot read {self.files.path}/{name} ({reason})") from error

    def image(self, index: int) -> Tensor:
        image = self.decode(index)
        size = self.info.image_size
        return to_tensor(image if size is None else fit(image, size))

    def select(self, indices: Tensor, info: DatasetInfo) -> FileDataset:
        return FileDataset(self.files, [self.names[i] for i in indices.tolist()], self.labels[indices], info)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, the way up that its camera noted: 16-bit grey is scaled, transparency becomes white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which a plain conversion would clip to white
        return Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to ``size`` and crops the middle of the longer."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)


def limit(dataset: Dataset, classes: int | None, per_class: int | None, fraction: float = 1.0) -> Dataset:
    """The first images of each of the first classes: the same images whoever asks.

    Args:
        classes: how many classes to keep, None for all.
        per_class: how many images of each to keep, None for all.
        fraction: which part of those, rounded, at least one of each class.

    Raises:
        RequestError: fewer than 2 classes or 1 image a class are asked for, or more classes than there are.
    """
    if classes is not None and not 2 <= classes <= dataset.info.num_classes:
        raise RequestError(
            f"limit_classes: expected 2 to {dataset.info.num_classes} for {dataset.info.name}; got {classes}"
        )
    if per_class is not None and per_class < 1:
        raise RequestError(f"limit_train: expected at least 1 image a class; got {per_class}")
    if classes is None and per_class is None and fraction == 1:
        return dataset
    kept = dataset.info.num_classes if classes is None else classes
    members = [(dataset.labels == label).nonzero().flatten()[:per_class] for label in range(kept)]
    indices = torch.cat([own[: max(1, round(fraction * len(own)))] for own in members]).sort().values
    return dataset.select(indices, replace(dataset.info, classes=dataset.info.classes[:kept]))


Load = Callable[[str, Path, int | None], Dataset]
"""(split, root, image_size) -> data set."""

datasets: Registry[Load] = Registry("dataset")
"""Data sets by name, without ``folder:PATH``."""


def check_split(name: str, split: str, accepted: Sequence[str]) -> str:
    """The split's own name at this data set. What is evaluated on goes by "test" and by "val" everywhere."""
    for candidate in (split, {"val": "test", "test": "val"}.get(split, split)):
        if candidate in accepted:
            return candidate
    raise RequestError(f"split: {name} has {', '.join(accepted)}; got {split!r}")
