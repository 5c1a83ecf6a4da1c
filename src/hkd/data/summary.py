"""What a person wants to know of the images before a training that takes hours."""

from __future__ import annotations

from contextlib import suppress
from statistics import median

import torch

from hkd.data.base import Dataset, FileDataset
from hkd.data.images import open_image
from hkd.data.open import Data
from hkd.outside import printable

SAMPLE = 64
"""Images in files whose sizes are looked at, evenly spaced; they are not decoded."""
IMBALANCED = 3.0
"""From this ratio of the largest class to the smallest on, the ways to balance them are named."""


def summarise(data: Data, *, balanced: bool = False) -> str:
    """How many training images the classes have, which sizes images in files have, and what was left out, a line each.

    Args:
        data: of a run.
        balanced: whether the run balances the classes already.
    """
    lines = [_classes(data.train, balanced), _sizes(data.train)]
    if data.dropped:
        lines.append(f"left out: {', '.join(data.dropped)}")
    return "\n".join(line for line in lines if line)


def _classes(dataset: Dataset, balanced: bool) -> str:
    names, labelled = dataset.info.classes, dataset.labels[dataset.labels >= 0]
    counts = torch.bincount(labelled, minlength=len(names))
    least, most = int(counts.argmin()), int(counts.argmax())
    low, high = int(counts[least]), int(counts[most])
    if low == high:
        return f"{low:,} training images in each class"
    least_name, most_name = (printable(names[label], 40) for label in (least, most))
    ratio = f"imbalance {high / low:.1f}" if low else "a class has none"
    hint = "" if balanced or not low or high / low < IMBALANCED else "; see --balance"
    return f"{low:,} ({least_name}) to {high:,} ({most_name}) training images in a class, {ratio}{hint}"


def _sizes(dataset: Dataset) -> str:
    """Of images in files, before they are resized."""
    if not isinstance(dataset, FileDataset):
        return ""
    sample = min(SAMPLE, len(dataset))
    sizes = []
    for number in range(sample):
        with suppress(Exception):  # a file that is no image raises anything, and is reported when it is shown
            sizes.append(open_image(dataset.files.read(dataset.names[number * len(dataset) // sample])).size)
    if not sizes:
        return ""
    areas = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    (small, large), middle = ((f"{w}x{h}" for w, h in (areas[0], areas[-1])), median(min(size) for size in sizes))
    if small == large and len(set(sizes)) == 1:
        return f"files of {small} pixels ({len(sizes)} looked at)"
    return f"files of {small} to {large} pixels, the median shorter side {middle:.0f} ({len(sizes)} looked at)"
