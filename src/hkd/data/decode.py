"""Small data sets in memory: decoded once, and kept decoded on disk for the next start."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hkd.data.base import LARGEST_IN_MEMORY, ArrayDataset, Dataset, FileDataset
from hkd.errors import RequestError
from hkd.files import replacing_path
from hkd.outside import open_regular, printable, read_header

LARGEST_BYTES = 4 * 2**30


def fits_in_memory(dataset: Dataset) -> bool:
    """Whether a data set is small enough to live in memory: squares of at most 96 pixels, 4 GiB in all."""
    size = dataset.info.image_size
    if isinstance(dataset, ArrayDataset):
        return True
    return size is not None and size <= LARGEST_IN_MEMORY and 3 * size * size * len(dataset) <= LARGEST_BYTES


def in_memory(dataset: Dataset, cache: Path | None = None, workers: int = 1, bad_images: str = "stop") -> ArrayDataset:
    """Decodes a data set whose images have one size.

    Args:
        cache: folder where the decoded images are kept, so that the next start reads one file; any number of runs may
            share it. None keeps nothing.
        workers: threads that decode.
        bad_images: "skip" to go on without what cannot be read.

    Raises:
        RequestError: images cannot be read: says how many, and names some.
    """
    if isinstance(dataset, ArrayDataset):
        return dataset
    if not isinstance(dataset, FileDataset):
        raise RequestError(f"dataset: expected an ArrayDataset or a FileDataset; got {type(dataset).__name__}")
    path = None if cache is None else cache / f"{_cache_name(dataset)}.safetensors"
    size = dataset.info.image_size
    if size is None:
        raise RequestError(f"image_size: expected a side in pixels for {dataset.info.name}, whose images vary in size")
    images = None if path is None else _read_cache(path, len(dataset), size)
    if images is None:
        images, bad = _decode(dataset, workers)
        if bad:  # only whole data sets are kept
            return _readable(dataset, images, bad, bad_images)
        if path is not None:
            _write_cache(path, images)
    return ArrayDataset(images, dataset.labels, dataset.info, dataset.rows)


def _decode(dataset: FileDataset, workers: int) -> tuple[Tensor, list[int]]:
    """All images, uint8 (N, 3, S, S), and the positions of those that cannot be read, in order."""
    size = dataset.info.image_size
    assert size is not None
    images = torch.empty(len(dataset), 3, size, size, dtype=torch.uint8)

    def decode(index: int) -> bool:
        try:
            images[index] = dataset.image(index)
        except RequestError:
            return False
        return True

    with ThreadPoolExecutor(max(1, workers)) as pool:
        readable = list(pool.map(decode, range(len(dataset))))
    return images, [index for index, good in enumerate(readable) if not good]


def _readable(dataset: FileDataset, images: Tensor, bad: list[int], bad_images: str) -> ArrayDataset:
    """The images that could be read, if the others are to be skipped."""
    names = ", ".join(printable(dataset.names[n]) for n in bad[:5]) + (", ..." if len(bad) > 5 else "")
    problem = f"{len(bad)} of {len(dataset)} images taken from {dataset.files.path} cannot be read: {names}"
    if bad_images != "skip" or len(bad) == len(dataset):
        raise RequestError(f"dataset: {problem}; fix or remove them, or skip them with --bad-images skip")
    print(f"warning: skipped, {problem}", file=sys.stderr)
    good = torch.ones(len(dataset), dtype=torch.bool)
    good[bad] = False
    return ArrayDataset(images[good], dataset.labels[good], dataset.info, dataset.positions[good])


def _cache_name(dataset: FileDataset) -> str:
    """Changes with the files, the choice of them, and the size that they are decoded to."""
    digest = hashlib.sha256(f"{dataset.files.fingerprint} {dataset.info.image_size}\n".encode())
    digest.update("\n".join(dataset.names).encode())
    return digest.hexdigest()[:32]


def _pixel_digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()


def _read_cache(path: Path, count: int, size: int) -> Tensor | None:
    """The decoded images, uint8 (N, 3, S, S); None where there are none, or the file does not hold what was written to
    it. It may have come with a run folder from elsewhere: its form is checked before it is read, and its digest after.
    """
    if not os.path.lexists(path):
        return None
    shape = (count, 3, size, size)
    with suppress(RequestError, OSError, ValueError), open_regular(path, "cache", follow=False) as file:
        header = read_header(file)
        expected = {"dtype": "U8", "shape": list(shape), "data_offsets": [0, math.prod(shape)]}
        metadata = header.get("__metadata__")
        whole = os.fstat(file.fileno()).st_size == file.tell() + math.prod(shape)
        if whole and header.get("images") == expected and len(header) == 2 and isinstance(metadata, dict):
            pixels = bytearray(math.prod(shape))
            if file.readinto(pixels) == len(pixels):  # type: ignore[attr-defined]
                images = torch.frombuffer(pixels, dtype=torch.uint8).view(shape)
                if _pixel_digest(images) == metadata.get("sha256"):
                    return images
    print(f"warning: {printable(path, 4096)} is damaged; the images are decoded again", file=sys.stderr)
    return None


def _write_cache(path: Path, images: Tensor) -> None:
    """Writes the file as a whole or not at all; it saves the next start time, so a full disk is no error."""
    with suppress(OSError, safetensors.SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_path(path) as partial:  # another run, here or elsewhere, may write the same
            safetensors.torch.save_file({"images": images}, str(partial), {"sha256": _pixel_digest(images)})
