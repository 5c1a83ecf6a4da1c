"""The shrunken images of a data set on disk, as pixels: after the first epoch, training reads memory and no JPEG."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hkd.data.base import FileDataset
from hkd.data.files import Files
from hkd.data.images import Pixels, open_image
from hkd.errors import RequestError
from hkd.outside import printable
from hkd.slots import Places, Slots, Words

RULE = 1
"""Of how a file becomes a shrunken image (:func:`hkd.data.images.shrunken`): raised whenever its pixels change."""
SHRUNKEN = 2
"""Shorter side of a shrunken image, in sides of what the network sees. The smallest part that training shows of a
photograph of 3:2, 8 % of its area, has 155 pixels a side then for a network's 224; the mean part is not enlarged."""
LONGEST = 2
"""Longer side of the longest image that a slot holds, in shorter sides."""
PAGE = 4096
SAMPLE = 64
FOLDER = "photographs"


def shrunken_side(image_size: int) -> int:
    """Shorter side in pixels of the images from which training crops: twice what the network sees."""
    return SHRUNKEN * image_size


class ImageCopy:
    """The shrunken images of a folder or archive, whatever part of them a run trains on.

    An image has a slot with its height, its width and its pixels (H, W, 3) in a sparse file, so that only pixels take
    space. Workers write images as they meet them; any number of processes and runs share the file. What does not have
    the checksum of its slot, its place and its name counts as unknown. An image more than twice as long as it is wide
    does not fit its slot, and is not kept. Where nothing can be written any more, one warning says so, and the rest is
    decoded each time.

    Args:
        folder: of all copies; this one is in a folder of its own below, named by the files and the shorter side.
        files: the folder or archive. Its fingerprint changes when a file is rewritten, and so does the copy.
        side: shorter side of a shrunken image.
        gigabytes: the most that the copy may take on disk.

    Raises:
        RequestError: what is there is not this copy.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, files: Files, side: int, gigabytes: float) -> None:
        self._arguments = (folder, files, side, gigabytes)
        self._names, self._most = files.names, gigabytes * 1e9
        header = {"format": RULE, "side": side, "files": _digest(files)}
        name = hashlib.sha256(repr(header).encode()).hexdigest()[:32]
        self.slots = Slots(folder / FOLDER / name, header, len(self._names), slot_bytes(side), "image_cache")
        self._stopped = torch.zeros(1, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]  # the workers warn once between them

    def __reduce__(self) -> Any:
        """For workers that are started and not forked: they open the files themselves."""
        return _reopened, (self._arguments, self._stopped)

    def read(self, name: str) -> Pixels | None:
        """The shrunken image of a file, read-only and in the file's own memory; None where it is not known."""
        place = self._place(name)
        if place is None or not self.slots.marks[place[0]]:
            return None
        row = self.slots.rows[place[0]]
        height, width = int(row[0]), int(row[1])
        words = _words(height, width)
        if not height * width > 0 or words > len(row) or not self.slots.known(row[None, :words], place, _owner(name)):
            return None
        pixels: Pixels = row[2:words].view(np.uint8)[: 3 * height * width].reshape(height, width, 3)
        return pixels

    def write(self, name: str, pixels: Pixels) -> None:
        """Keeps a shrunken image (H, W, 3), where there is room for it."""
        place, (height, width) = self._place(name), pixels.shape[:2]
        words = _words(height, width)
        if place is None or self._stopped[0] or 4 * words > self.slots.size:
            return
        row = np.zeros(words, np.uint32)
        row[:2] = height, width
        row[2:].view(np.uint8)[: pixels.size] = pixels.reshape(-1)
        try:
            if self.slots.bytes + 4 * words > self._most:
                self._stop(f"has the {self._most / 1e9:g} GB of --image-cache-gb")
            else:
                self.slots.write(place, row[None], _owner(name))
        except OSError as error:
            self._stop(f"cannot be written ({error.strerror})")

    def known(self, names: list[str]) -> int:
        """How many of some files have a shrunken image here."""
        places = [place for name in names if (place := self._place(name)) is not None]
        return int((self.slots.marks[np.concatenate(places)] != 0).sum()) if places else 0

    def _stop(self, reason: str) -> None:
        self._stopped[0] = True
        place = printable(self.slots.path, 4096)
        print(f"warning: the copy of the images in {place} {reason}; the rest is decoded each time", file=sys.stderr)

    def _place(self, name: str) -> Places | None:
        """(1,) The slot of a file: its number among all of the folder or archive, which are sorted."""
        number = bisect_left(self._names, name)
        return np.array([number]) if number < len(self._names) and self._names[number] == name else None


def _reopened(arguments: Any, stopped: torch.Tensor) -> ImageCopy:
    copy = ImageCopy(*arguments)
    copy._stopped = stopped
    return copy


def _words(height: int, width: int) -> int:
    """Of a slot that are used: height, width, and the pixels."""
    return 2 + math.ceil(3 * height * width / 4)


def _owner(name: str) -> Words:
    return np.frombuffer(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4], np.uint32)


def _digest(files: Files) -> str:
    digest = hashlib.sha256(f"{files.fingerprint}\n".encode())
    digest.update("\n".join(files.names).encode(errors="surrogateescape"))
    return digest.hexdigest()


def slot_bytes(side: int) -> int:
    """Of a slot, in whole pages, so that what is not used of it takes no space."""
    return math.ceil(4 * _words(side, LONGEST * side) / PAGE) * PAGE


def expected_bytes(dataset: FileDataset, side: int) -> int:
    """About what the copy of a data set takes, from the sizes of 64 images, which are not decoded."""
    sample = min(SAMPLE, len(dataset))
    sizes = [_expected(dataset, number * len(dataset) // sample, side) for number in range(sample)]
    return round(sum(sizes) / sample * len(dataset))


def _expected(dataset: FileDataset, index: int, side: int) -> int:
    with suppress(Exception):  # a file that is no image raises anything, and takes no space
        width, height = open_image(dataset.files.read(dataset.names[index])).size
        scale = min(1.0, side / min(width, height))
        size = 4 * _words(round(height * scale), round(width * scale))
        return math.ceil(size / PAGE) * PAGE if size <= slot_bytes(side) else 0
    return 0


def open_copy(dataset: FileDataset, side: int, folder: Path, gigabytes: float) -> tuple[ImageCopy | None, str]:
    """The copy of a data set, None where it does not fit, and a line that says which."""
    expected = expected_bytes(dataset, side)
    size = f"about {expected / 1e9:.2f} GB"
    if expected > gigabytes * 1e9:
        return None, f"image copy: none, it would take {size}, and --image-cache-gb is {gigabytes:g}"
    try:
        copy = ImageCopy(folder, dataset.files, side, gigabytes)
        free = shutil.disk_usage(folder).free
    except (OSError, RequestError) as error:
        return None, f"image copy: none, it cannot be opened ({printable(error)})"
    if expected - copy.slots.bytes > free:
        return None, f"image copy: none, it would take {size}, and {free / 1e9:.2f} are free in {folder}"
    known = f"{copy.known(dataset.names):,} of {len(dataset):,} images known"
    return copy, f"image copy: {known} in {copy.slots.path} ({copy.slots.bytes / 1e9:.2f} GB of {size})"
