"""Parts of a data set: the first images of some classes, and a held-out part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hkd.data.base import Dataset
from hkd.data.randomness import draws
from hkd.errors import RequestError


def limit(dataset: Dataset, classes: int | None, per_class: int | None, fraction: float = 1.0) -> Dataset:
    """The first images of each of the first classes: the same images for every method and seed.

    Args:
        classes: how many classes to keep, None for all.
        per_class: how many images of each to keep, None for all.
        fraction: which part of those, rounded, at least one of each class.

    Raises:
        RequestError: fewer than 2 classes, more than there are, or less than 1 image a class.
    """
    if classes is not None and not 2 <= classes <= dataset.info.num_classes:
        raise RequestError(
            f"limit_classes: expected 2 to {dataset.info.num_classes} for {dataset.info.name}; got {classes}"
        )
    if per_class is not None and per_class < 1:
        raise RequestError(f"limit_train: expected at least 1 image a class; got {per_class}")
    if classes is None and per_class is None and fraction == 1:
        return dataset
    count = dataset.info.num_classes if classes is None else classes
    members = [(dataset.labels == label).nonzero().flatten()[:per_class] for label in range(count)]
    kept = torch.cat([part[: max(1, round(fraction * len(part)))] for part in members]).sort().values
    return dataset.select(kept, replace(dataset.info, classes=dataset.info.classes[:count]))


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Parts the images of every class in two, at random.

    Whether an image is held out depends on the seed and on the rows of the images of its class, so a data set without
    some of its classes is parted as the whole is.

    Args:
        fraction: of the images of each class to hold out, rounded; at least one is held out and at least one remains.
        seed: of the choice.

    Returns:
        What remains to train on, and what is held out, both in the order of the data set. Images without a label (-1)
        remain.

    Raises:
        RequestError: a class has fewer than two images.
    """
    labels = dataset.labels.numpy()
    counts = np.bincount(labels[labels >= 0], minlength=dataset.info.num_classes)
    if (counts < 2).any():
        small = int((counts < 2).argmax())
        raise RequestError(
            f"holdout: expected at least 2 images of each class, one to train on and one to hold out; "
            f"class {dataset.info.classes[small]!r} of {dataset.info.name} has {counts[small]}"
        )
    sizes = np.clip(np.rint(fraction * counts).astype(np.int64), 1, counts - 1)
    order = np.lexsort((draws(f"holdout {seed}", dataset.positions), labels))  # class by class, shuffled in each
    ends = (labels < 0).sum() + counts.cumsum()
    held = torch.zeros(len(dataset), dtype=torch.bool)
    for end, count, size in zip(ends, counts, sizes, strict=True):
        held[torch.from_numpy(order[end - count : end - count + size])] = True
    remaining, held_out = (~held).nonzero().flatten(), held.nonzero().flatten()
    return dataset.select(remaining, dataset.info), dataset.select(held_out, dataset.info)
