"""A data set object of another library as one of ours."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hkd.data.base import ArrayDataset, Dataset, DatasetInfo, checked_labels
from hkd.data.images import check_size, preprocess, resize, to_rgb, to_tensor
from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import has_controls, printable

MOST_CLASSES = 1_000_000
"""Classes of a data set that does not name them."""


def as_dataset(source: Any, image_size: int | None = None, classes: Sequence[str] | None = None) -> Dataset:
    """Makes a map-style data set of (image, label, ...) a :class:`Dataset` in memory. The source stays as it is.

    Args:
        source: has ``len`` and items whose first two parts are an image (PIL, or uint8 of shape (3, H, W)) and its
            class; no random augmentation, which training does itself. All of it is read into memory. A
            :class:`Dataset` is copied, without its images where their size stays. A ``datasets.Dataset`` of Hugging
            Face has one Image and one ClassLabel among its features.
        image_size: resize to squares of this side in pixels; needed where images vary in size.
        classes: their names; if not given, the names that the source has, or the data set of which it is a ``Subset``,
            else numbers.

    Raises:
        RequestError: the source is no such data set, an item is something else, or images vary in size.

    Example::

        data = hkd.as_dataset(torchvision.datasets.Flowers102("data"), image_size=64)
    """
    check_size(image_size)
    names = _names(classes)
    if isinstance(source, Dataset):
        return _copy(source, image_size, names)
    name = type(source).__name__
    if isinstance(source, str | Mapping) or not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        hint = f"; its .dataset is one of {type(source.dataset).__name__}" if hasattr(source, "dataset") else ""
        if isinstance(source, Mapping) and source and all(hasattr(part, "features") for part in source.values()):
            hint = f"; pass one of its splits, {printable(', '.join(map(str, source)), 80)}"
        raise RequestError(f"dataset: expected a data set with a length and items by number; got {name}{hint}")
    columns = _columns(source, name)
    images, labels = [], []
    for number in range(len(source)):
        item = source[number]
        if columns is not None and isinstance(item, Mapping) and all(column in item for column in columns):
            item = tuple(item[column] for column in columns)
        image, label = _pair(item, number, name)
        images.append(_uint8(image, image_size, name))
        labels.append(label)
    if not images:
        raise RequestError(f"dataset: {name} has no images")
    if len({tuple(image.shape) for image in images}) != 1:
        raise RequestError(f"dataset: the images of {name} vary in size; pass image_size")
    if names is None:
        names = _names(_classes_of(source, columns))
    if names is None and max(labels) >= MOST_CLASSES:
        raise RequestError(f"dataset: expected labels below {MOST_CLASSES:,} from {name}; got {max(labels)}")
    if names is None:
        names = tuple(str(number) for number in range(max(labels) + 1))
    return ArrayDataset(torch.stack(images), torch.tensor(labels), DatasetInfo(name, names))


def _layers(source: Any) -> Iterator[Any]:
    """A data set, and those of which it is a part, as ``torch.utils.data.Subset`` has them."""
    yield source
    while hasattr(source, "dataset") and hasattr(source, "indices"):
        source = source.dataset
        yield source


def _columns(source: Any, name: str) -> tuple[str, str] | None:
    """The columns of a data set of Hugging Face that are the image and its class; None for any other data set.

    Raises:
        RequestError: it has none of them, or several.
    """
    features = getattr(list(_layers(source))[-1], "features", None)
    if not isinstance(features, Mapping):
        return None
    found = []
    for kind, hint in (("Image", "cast_column"), ("ClassLabel", "class_encode_column")):
        columns = [column for column, feature in features.items() if type(feature).__name__ == kind]
        if len(columns) != 1:
            got = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
            way = f"its {hint} makes one" if not columns else "its remove_columns leaves one"
            raise RequestError(
                f"dataset: expected one {kind} among the features of {name}; got {printable(got) or 'none'}; {way}"
            )
        found.append(str(columns[0]))
    return found[0], found[1]


def _classes_of(source: Any, columns: tuple[str, str] | None) -> Any:
    """The names of a data set's classes, or of those of which it is a part; None where there are none."""
    for layer in _layers(source):
        if isinstance(layer, Dataset):
            return layer.info.classes
        if (classes := getattr(layer, "classes", None)) is not None:
            return classes
        if columns is not None and isinstance(getattr(layer, "features", None), Mapping):
            return getattr(layer.features[columns[1]], "names", None)
    return None


def _names(classes: Any) -> tuple[str, ...] | None:
    """Names of classes as texts; None where there are none."""
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise RequestError(f"classes: expected a list of names; got {shown(classes)}")
    names = tuple(map(str, classes))
    if odd := next((one for one in names if has_controls(one)), None):
        raise RequestError(f"classes: expected names without control characters; got {shown(odd)}")
    return names or None


def _copy(source: Dataset, image_size: int | None, classes: tuple[str, ...] | None) -> Dataset:
    """One of our data sets in another size or with other names, without its images where their size stays."""
    info = replace(source.info, classes=classes or source.info.classes)
    if isinstance(source, ArrayDataset):
        return ArrayDataset(resize(source.images, image_size), source.labels, info, source.rows)
    checked_labels(source.labels, len(source), info)
    dataset = copy.copy(source)
    dataset.info = replace(info, image_size=image_size or info.image_size)
    return dataset


def _pair(item: Any, number: int, name: str) -> tuple[Any, int]:
    """The image and the class of an item."""
    if not isinstance(item, Sequence) or isinstance(item, str | bytes) or len(item) < 2:
        got = f"one with the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise RequestError(f"dataset: expected items (image, class) from {name}; item {number} is {printable(got)}")
    image, label = item[:2]
    try:
        whole = int(label)
        if whole == label and abs(whole) < 2**63:
            return image, whole
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a text, nothing, NaN, a tensor of several
        pass
    raise RequestError(f"dataset: expected whole numbers as classes from {name}; item {number} has {shown(label)}")


def _uint8(image: Any, size: int | None, name: str) -> Tensor:
    """One item's image as uint8 (3, H, W), or (3, size, size)."""
    is_rgb = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
    if is_rgb and image.numel() > 0:
        pixels: Tensor = image
        if size is None:
            return pixels
        image = Image.fromarray(np.asarray(pixels.permute(1, 2, 0)))
    if isinstance(image, Image.Image) and image.mode != "F" and 0 not in image.size:
        return to_tensor(to_rgb(image) if size is None else preprocess(image, size, "fit"))
    raise RequestError(
        f"dataset: expected PIL images or uint8 tensors (3, H, W) from {name}, before any augmentation or "
        f"normalisation; got {_described(image)}"
    )


def _described(image: Any) -> str:
    """What an image is instead of one."""
    kind = type(image).__name__
    if isinstance(image, Image.Image):
        return f"an {kind} of mode {image.mode} and size {image.size}"
    if isinstance(image, Tensor | np.ndarray):
        return f"{kind} {image.dtype} of shape {tuple(image.shape)}"
    return kind
