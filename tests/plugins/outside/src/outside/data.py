"""Images of stripes, in one of two directions."""

from __future__ import annotations

from pathlib import Path

import torch

from hkd.data import ArrayDataset, DatasetInfo, check_split, datasets


@datasets.register("stripes")
def stripes(split: str, root: Path, image_size: int | None) -> ArrayDataset:
    """64 training and 32 test images of 8x8 pixels."""
    count = 64 if check_split("stripes", split, ("train", "test")) == "train" else 32
    labels = torch.arange(count) % 2
    pattern = torch.arange(8).remainder(2).mul(160).expand(8, 8)
    images = torch.where(labels[:, None, None].bool(), pattern, pattern.T)[:, None].expand(-1, 3, -1, -1)
    noise = torch.randint(80, images.shape, generator=torch.Generator().manual_seed(count))
    info = DatasetInfo("stripes", ("upright", "level"), mean=(0.47,) * 3, std=(0.33,) * 3, flip=False)
    return ArrayDataset((images + noise).to(torch.uint8), labels, info)
