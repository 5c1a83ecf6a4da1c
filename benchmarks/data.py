"""The in-memory loader beside the usual torchvision pipeline, in one run, on one core.

    python benchmarks/data.py [--images 20000] [--batch 64] [--json FILE]

Both crop at random after padding by 4, mirror at random and normalise the same 32x32 images; the pipeline does it image
by image (PIL, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, DataLoader without workers), as CIFAR code does.
They take turns; the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from hkd.data import ArrayDataset, DatasetInfo, make_loader

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class PerImage(TorchDataset):
    """Images one by one through torchvision's transforms, as its CIFAR data sets do."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


def rate(epoch: Callable[[], int]) -> float:
    """Images a second."""
    started = time.perf_counter()
    count = epoch()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    images = torch.randint(0, 256, (asked.images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(asked.images) % 100
    info = DatasetInfo("noise", tuple(map(str, range(100))), mean=MEAN, std=STD)
    memory = make_loader(ArrayDataset(images, labels, info), asked.batch, torch.device("cpu"), train=True)
    pipeline = DataLoader(PerImage(images, labels), asked.batch, shuffle=True)
    kinds: dict[str, Callable[[], int]] = {
        "torchvision, image by image": lambda: sum(len(label) for _, label, _ in pipeline),
        "in memory, whole batches": lambda: sum(len(batch.label) for batch in memory.epoch(0)),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(asked.rounds):
        for kind, epoch in kinds.items():
            rates[kind].append(rate(epoch))
    median = {kind: statistics.median(values) for kind, values in rates.items()}
    base = next(iter(median.values()))
    print(f"{asked.images} images of 32x32, batch {asked.batch}, one thread, torch {torch.__version__}\n")
    print(f"{'loader':<30} {'images/s':>10} {'times faster':>13}")
    for kind, value in median.items():
        print(f"{kind:<30} {value:>10,.0f} {value / base:>12.1f}x")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"settings": vars(asked), "images_per_second": rates}, file, indent=2)


if __name__ == "__main__":
    main()
