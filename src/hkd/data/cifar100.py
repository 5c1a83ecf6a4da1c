"""CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from pathlib import Path

import torch

from hkd.data.base import ArrayDataset, DatasetInfo, check_split, datasets
from hkd.data.download import downloading
from hkd.data.images import resize


@datasets.register("cifar100")
def cifar100(split: str, root: Path, image_size: int | None) -> ArrayDataset:
    """50,000 training and 10,000 test images, 32x32, in 100 classes. Downloaded with a checksum where missing."""
    from torchvision.datasets import CIFAR100

    train = check_split("cifar100", split, ("train", "test")) == "train"
    with downloading("cifar100", root) as allowed:
        source = CIFAR100(str(root), train=train, download=allowed)
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    info = DatasetInfo("cifar100", tuple(source.classes), mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
    return ArrayDataset(resize(images, image_size), torch.tensor(source.targets), info)
