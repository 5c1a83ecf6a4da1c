"""A data set object of another library as one of ours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hkd.data.base import ArrayDataset, Dataset, DatasetInfo
from hkd.data.images import fit, resize, to_rgb, to_tensor
from hkd.errors import RequestError


def as_dataset(source: Any, image_size: int | None = None, classes: Sequence[str] | None = None) -> Dataset:
    """Makes a map-style data set of (image, label, ...) a :class:`Dataset` in memory. The source stays as it is.

    Args:
        source: has ``len`` and items whose first two parts are an image (PIL, or uint8 of shape (3, H, W)) and its
            class; no random augmentation, which training does itself. All of it is read into memory. A
            :class:`Dataset` is copied, without its images where their size stays.
        image_size: resize to squares of this side in pixels; needed where images vary in size.
        classes: their names; ``source.classes``, or numbers, if not given.

    Raises:
        RequestError: an item is something else, or images vary in size.

    Example::

        data = hkd.as_dataset(torchvision.datasets.Flowers102("data"), image_size=64)
    """
    if isinstance(source, Dataset):
        info = replace(source.info, classes=tuple(classes or source.info.classes))
        if isinstance(source, ArrayDataset):
            return ArrayDataset(resize(source.images, image_size), source.labels, info, source.rows)
        dataset = copy.copy(source)
        dataset.info = replace(info, image_size=image_size or info.image_size)
        return dataset
    name = type(source).__name__
    items = (source[i] for i in range(len(source)))
    images, labels = [], []
    for image, label, *_ in items:
        images.append(_uint8(image, image_size, name))
        labels.append(int(label))
    if not images:
        raise RequestError(f"dataset: {name} has no images")
    if len({tuple(image.shape) for image in images}) != 1:
        raise RequestError(f"dataset: the images of {name} vary in size; pass image_size")
    names = classes or getattr(source, "classes", None) or [str(i) for i in range(max(labels) + 1)]
    return ArrayDataset(torch.stack(images), torch.tensor(labels), DatasetInfo(name, tuple(map(str, names))))


def _uint8(image: Any, size: int | None, name: str) -> Tensor:
    """One item's image as uint8 (3, H, W), or (3, size, size)."""
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        if size is None:
            return image
        image = Image.fromarray(np.asarray(image.permute(1, 2, 0)))
    if isinstance(image, Image.Image):
        image = to_rgb(image)
        return to_tensor(image if size is None else fit(image, size))
    raise RequestError(
        f"dataset: expected PIL images or uint8 tensors (3, H, W) from {name}, before any augmentation or "
        f"normalisation; got {type(image).__name__}"
    )
