"""STL-10 (Coates et al., "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011)."""

from pathlib import Path

import torch

from hkd.data.base import ArrayDataset, DatasetInfo, check_split, datasets
from hkd.data.download import downloading
from hkd.data.images import resize


@datasets.register("stl10")
def stl10(split: str, root: Path, image_size: int | None) -> ArrayDataset:
    """5,000 training and 8,000 test images, 96x96, in 10 classes; the split "unlabeled" has 100,000 more, label -1.

    Downloaded with a checksum where missing. The paper down-samples it to 32x32 (``image_size=32``).
    """
    from torchvision.datasets import STL10

    class Encrypted(STL10):  # type: ignore[misc]
        url = STL10.url.replace("http://", "https://")

    split = check_split("stl10", split, ("train", "test", "unlabeled"))
    with downloading("stl10", root) as allowed:
        source = Encrypted(str(root), split=split, download=allowed)
    images = resize(torch.from_numpy(source.data), image_size)
    info = DatasetInfo("stl10", tuple(source.classes), mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713))
    return ArrayDataset(images, torch.from_numpy(source.labels), info)
