"""A data set of CIFAR-100's size that is noise: ``--plugin benchmarks.noise --dataset noise100``."""

from __future__ import annotations

from pathlib import Path

import torch

from hkd.data import ArrayDataset, DatasetInfo, check_split, datasets

CLASSES = tuple(f"class {n:03d}" for n in range(100))
INFO = DatasetInfo("noise100", CLASSES, mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29))


@datasets.register("noise100")
def noise100(split: str, root: Path, image_size: int | None) -> ArrayDataset:
    """50,000 training and 10,000 test images, 32x32, in 100 classes."""
    count = 50_000 if check_split("noise100", split, ("train", "test")) == "train" else 10_000
    draw = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return ArrayDataset(images, torch.arange(count) % 100, INFO)
