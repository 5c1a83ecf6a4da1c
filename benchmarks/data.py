"""The loaders beside the usual torchvision pipelines, in one run.

    python -m benchmarks data [--images 20000] [--batch 64] [--json FILE]

In memory, on one core: both crop at random after padding by 4, mirror and normalise the same 32x32 images; the
pipeline does it image by image (PIL, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, no workers).
Streaming, with two worker processes: JPEG files of 500x375, as ImageNet's usually are, through RandomResizedCrop to 224
and a mirror, from file to normalised batch; the pipeline is torchvision's ImageFolder, usual transforms.

Both kinds take turns; the tables give medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.common import machine, write
from hkd.data import ArrayDataset, DatasetInfo, load_dataset, make_loader
from hkd.types import IMAGENET_MEAN, IMAGENET_STD

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


def in_memory(images: int, batch: int) -> dict[str, Callable[[], int]]:
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(images) % 100
    info = DatasetInfo("noise", tuple(map(str, range(100))), mean=MEAN, std=STD)
    memory = make_loader(ArrayDataset(pixels, labels, info), batch, torch.device("cpu"), train=True)
    pipeline = DataLoader(PerImage(pixels, labels), batch, shuffle=True)
    return {
        "torchvision, image by image": lambda: sum(len(label) for _, label, _ in pipeline),
        "in memory, whole batches": lambda: sum(len(found.label) for found in memory.epoch(0)),
    }


def streaming(folder: Path, images: int, batch: int) -> dict[str, Callable[[], int]]:
    """A folder of smooth noise, which JPEG compresses about as it does photographs."""
    for split, count in (("train", images), ("val", 2)):
        for n in range(count):
            file = folder / split / f"class{n % 2}" / f"{n}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 256, (47, 63, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
    usual = transforms.Compose([
        transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    pipeline = DataLoader(
        ImageFolder(str(folder / "train"), usual), batch, shuffle=True, num_workers=2, persistent_workers=True
    )
    data = load_dataset(f"folder:{folder}")
    ours = make_loader(data, batch, torch.device("cpu"), train=True, workers=2)
    return {
        "torchvision ImageFolder, 2 workers": lambda: sum(len(label) for _, label in pipeline),
        "streamed, 2 workers": lambda: sum(len(found.label) for found in ours.epoch(0)),
    }


def compare(kinds: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Prints and returns the rates."""
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for epoch in kinds.values():
        epoch()  # starts workers
    for _ in range(rounds):
        for kind, epoch in kinds.items():
            rates[kind].append(rate(epoch))
    median = {kind: statistics.median(values) for kind, values in rates.items()}
    base = next(iter(median.values()))
    print(f"{'loader':<36} {'images/s':>10} {'times faster':>13}")
    for kind, value in median.items():
        print(f"{kind:<36} {value:>10,.0f} {value / base:>12.2f}x")
    return rates


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="in memory")
    parser.add_argument("--files", type=int, default=512, help="streamed")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{asked.images} images of 32x32, batch {asked.batch}, {machine(1)}\n")
    rates = compare(in_memory(asked.images, asked.batch), asked.rounds)
    print(f"\n{asked.files} JPEG files of 500x375 to 224x224\n")
    with tempfile.TemporaryDirectory() as folder:
        rates |= compare(streaming(Path(folder), asked.files, asked.batch), asked.rounds)
    write(asked.json, {"settings": vars(asked), "images_per_second": rates})
