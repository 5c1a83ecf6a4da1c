"""The loaders beside the usual torchvision pipelines, in one run.

    python -m benchmarks data [--images 20000] [--files 512] [--batch 64] [--json FILE]

In memory, on one core: both crop at random after padding by 4, mirror and normalise the same 32x32 images; the
pipeline does it image by image (PIL, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, no workers).
Streaming, with two worker processes: JPEG files of 500x375, as ImageNet's usually are, through RandomResizedCrop to 224
and a mirror, from file to normalised batch; the pipeline is torchvision's ImageFolder, usual transforms.
Photographs of 3000x2000, with two worker processes: the same, and ours twice, with an empty copy of shrunken images and
with that which the first epoch wrote. The files are in the page cache.

All kinds take turns; the tables give medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.common import machine, write
from hkd.data import ArrayDataset, Dataset, DatasetInfo, load_dataset, make_loader
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


def usual_pipeline(folder: Path, batch: int) -> Callable[[], int]:
    """An epoch of torchvision's ImageFolder with two workers."""
    usual = transforms.Compose([
        transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    pipeline = DataLoader(
        ImageFolder(str(folder / "train"), usual), batch, shuffle=True, num_workers=2, persistent_workers=True
    )
    return lambda: sum(len(label) for _, label in pipeline)


def write_photograph(file: Path, size: tuple[int, int], seed: int) -> None:
    """Smooth noise, which JPEG compresses about as it does photographs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, quality=90)


def photographs(folder: Path, count: int, size: tuple[int, int]) -> float:
    """A folder of two classes, made by two processes. Returns the mean megabytes of a file."""
    names = [folder / "train" / f"class{n % 2}" / f"{n}.jpg" for n in range(count)]
    names += [folder / "val" / f"class{n}" / f"{n}.jpg" for n in range(2)]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(write_photograph, names, [size] * len(names), range(len(names)), chunksize=8))
    return statistics.fmean(name.stat().st_size for name in names) / 1e6


def streaming(folder: Path, images: int, batch: int) -> dict[str, Callable[[], int]]:
    photographs(folder, images, (500, 375))
    ours = make_loader(load_dataset(f"folder:{folder}"), batch, torch.device("cpu"), train=True, workers=2)
    return {
        "torchvision ImageFolder, 2 workers": usual_pipeline(folder, batch),
        "streamed, 2 workers": lambda: sum(len(found.label) for found in ours.epoch(0)),
    }


def workers_memory(before: set[int]) -> str:
    """Means over the workers that were started since: MiB that one shares with nobody, and MiB of the copy in view."""
    workers = [child.pid for child in multiprocessing.active_children() if child.pid not in before]
    own = copy = 0.0
    for pid in workers:
        mapped = ""
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, *values = line.split()
            if not name.endswith(":"):  # the first line of a mapping ends with its file
                mapped = values[-1]
            elif name == "Private_Dirty:":
                own += int(values[0]) / 1024 / len(workers)
            elif name == "Rss:" and mapped.endswith("rows.bin"):
                copy += int(values[0]) / 1024 / len(workers)
    return f"a worker has {own:.0f} MiB of its own, and {copy:.0f} MiB of the copy in the page cache mapped"


def ours_twice(data: Dataset, batch: int, cache: Path) -> Generator[float, None, None]:
    """Rates of two epochs of one loader, which keeps its workers."""
    ours = make_loader(data, batch, torch.device("cpu"), train=True, workers=2, cache=cache)
    yield rate(lambda: sum(len(found.label) for found in ours.epoch(0)))
    yield rate(lambda: sum(len(found.label) for found in ours.epoch(1)))


def large_photographs(folder: Path, images: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Rates of an epoch of torchvision's, of our first (which writes the copy), and of our second (which reads it)."""
    size = photographs(folder / "photographs", images, (3000, 2000))
    print(f"\n{images} JPEG photographs of 3000x2000, {size:.1f} MB each, to 224x224\n")
    usual, data = usual_pipeline(folder / "photographs", batch), load_dataset(f"folder:{folder / 'photographs'}")
    first, second = "streamed, 2 workers, first epoch", "streamed, 2 workers, second epoch"
    rates: dict[str, list[float]] = {"torchvision ImageFolder, 2 workers": [], first: [], second: []}
    for number in range(rounds):
        rates["torchvision ImageFolder, 2 workers"].append(rate(usual))
        others, cache = {child.pid or 0 for child in multiprocessing.active_children()}, folder / f"cache{number}"
        epochs = ours_twice(data, batch, cache)
        rates[first].append(next(epochs))
        rates[second].append(next(epochs))
        memory, used = workers_memory(others), sum(f.stat().st_blocks for f in cache.rglob("*")) * 512 / 1e6
        epochs.close()
        shutil.rmtree(cache)
    tell(rates)
    print(f"\ncopy on disk {used:.0f} MB, {used / images:.2f} MB an image; {memory}")
    return {f"photographs: {kind}": values for kind, values in rates.items()}


def compare(kinds: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Prints and returns the rates."""
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for epoch in kinds.values():
        epoch()  # starts workers
    for _ in range(rounds):
        for kind, epoch in kinds.items():
            rates[kind].append(rate(epoch))
    tell(rates)
    return rates


def tell(rates: dict[str, list[float]]) -> None:
    """Prints the medians, and how many times the first kind's each is."""
    median = {kind: statistics.median(values) for kind, values in rates.items()}
    base = next(iter(median.values()))
    print(f"{'loader':<36} {'images/s':>10} {'times faster':>13}")
    for kind, value in median.items():
        print(f"{kind:<36} {value:>10,.0f} {value / base:>12.2f}x")


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
        rates |= compare(streaming(Path(folder) / "small", asked.files, asked.batch), asked.rounds)
        rates |= large_photographs(Path(folder), asked.files, asked.batch, min(3, asked.rounds))
    write(asked.json, {"settings": vars(asked), "images_per_second": rates})
