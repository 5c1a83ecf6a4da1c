"""Mean and standard deviation of the channels of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from hkd.data.base import ArrayDataset, Dataset, FileDataset
from hkd.data.images import to_tensor
from hkd.errors import RequestError
from hkd.types import Channels

LARGEST_SAMPLE = 2000
"""Images of a streamed data set that are looked at."""


def measure(dataset: Dataset, image_size: int, workers: int = 1, bad_images: str = "stop") -> tuple[Channels, Channels]:
    r"""Mean and standard deviation of each channel over all pixels of all images, scaled to [0, 1].

    From the counts :math:`n_v` of the values v = 0 ... 255, in whole numbers, so that every machine gets the same:
    :math:`\mu = \sum_v n_v v / 255 n` and :math:`\sigma^2 = (n \sum_v n_v v^2 - (\sum_v n_v v)^2) / (255 n)^2`.
    :math:`\sigma` is at least 1/255, so that a channel of one colour can be divided by it.

    Args:
        dataset: in memory, all of its images; in files, 2,000 of them that are evenly spaced, as an evaluation shows
            them.
        image_size: side in pixels at which images in files are shown.
        workers: threads that decode.
        bad_images: "skip" to go on without what cannot be read.

    Raises:
        RequestError: an image cannot be read.
    """
    if isinstance(dataset, ArrayDataset):
        counts = _total(map(_counts, torch.split(dataset.images, 1024)))
    else:
        assert isinstance(dataset, FileDataset)
        counts = _streamed(dataset, image_size, workers, bad_images)
    moments = [_moments(channel) for channel in counts.tolist()]
    (r, g, b), (red, green, blue) = ([moment[n] for moment in moments] for n in (0, 1))
    return (r, g, b), (red, green, blue)


def _counts(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of uint8 (N, 3, H, W) images: (3, 256)."""
    return torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)])


def _total(counts: Iterable[Tensor]) -> Tensor:
    return sum(counts, torch.zeros(3, 256, dtype=torch.int64))


def _moments(counts: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of one channel."""
    n = sum(counts)
    first = sum(count * value for value, count in enumerate(counts))
    second = sum(count * value**2 for value, count in enumerate(counts))
    return first / (255 * n), max(math.sqrt((n * second - first**2) / (255 * n) ** 2), 1 / 255)


def _streamed(dataset: FileDataset, image_size: int, workers: int, bad_images: str) -> Tensor:
    """The counts of a sample of images in files."""
    sample = min(len(dataset), LARGEST_SAMPLE)

    def look(number: int) -> Tensor | RequestError:
        try:
            image = dataset.prepared(number * len(dataset) // sample, image_size, "centre")
        except RequestError as error:
            return error
        return _counts(to_tensor(image)[None])

    with ThreadPoolExecutor(max(1, workers)) as pool:
        looks = list(pool.map(look, range(sample)))
    counts = [one for one in looks if isinstance(one, Tensor)]
    error = next((one for one in looks if isinstance(one, RequestError)), None)
    if error is not None and (bad_images != "skip" or not counts):
        raise RequestError(f"{error}; fix or remove it, or skip it with --bad-images skip")
    return _total(counts)
