"""Handwritten digits: 1,797 real images of 8x8 pixels that come with scikit-learn."""

from pathlib import Path

import torch

from hkd.data.base import ArrayDataset, DatasetInfo, check_split, datasets
from hkd.data.images import resize

INFO = DatasetInfo(
    name="digits",
    classes=tuple("0123456789"),
    mean=(0.305, 0.305, 0.305),
    std=(0.376, 0.376, 0.376),
    flip=False,  # a mirrored digit is another character
)


@datasets.register("digits")
def digits(split: str, root: Path, image_size: int | None) -> ArrayDataset:
    """Every fifth image of each class is held out for testing: 1,442 train, 355 test. Needs no download."""
    from sklearn.datasets import load_digits

    split = check_split("digits", split, ("train", "test"))
    source = load_digits()
    grey = torch.from_numpy(source.images) * (255 / 16)
    labels = torch.from_numpy(source.target)
    position = torch.stack([(labels == c).cumsum(0) - 1 for c in range(10)])[labels, torch.arange(len(labels))]
    kept = (position % 5 == 4) == (split == "test")
    images = grey[kept].round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    return ArrayDataset(resize(images, image_size), labels[kept], INFO)
