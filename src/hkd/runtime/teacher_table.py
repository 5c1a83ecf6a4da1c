r"""What a frozen teacher says of every view of every image, computed once and kept in a table on disk.

A teacher's output is a function of the image and the view alone, so one table serves every epoch, seed, batch size,
method, trial and student. A row holds all C logits and the embedding; its mark is a checksum of its bytes, of its place
and of the image, so that a torn, foreign or outdated row is never believed: it counts as unknown and is computed again.

Several processes read and write one table at the same time. A row is written first and its mark afterwards; where two
write the same row at once, a mixture of both does not have the mark of either.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from hkd.errors import RequestError
from hkd.files import inside, read_json, write_json
from hkd.runtime.records import TABLE, checked

FORMAT = 1
FILES = HEADER, ROWS, MARKS, LOCK = "header.json", "rows.bin", "marks.bin", ".lock"
StorageType = Literal["float16", "float32"]
AT_ONCE = 4096
Marks = NDArray[np.uint32]
Slots = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TableKey:
    """Everything that decides what stands in a table. Another key is another table.

    Attributes:
        teacher: a digest of its weights.
        classes, width: C and D.
        side, padding, augmentation: of the views; padding p of an in-memory data set gives 2 (2p + 1)² of them.
        views: V, how many an image has.
        decode: how an image file becomes pixels.
        mean, std: of the normalisation.
        teacher_size: side of what the teacher is shown.
        precision: of the teacher's arithmetic.
        folded: whether its batch norms are folded into its convolutions.
        dtype: of what is stored.
    """

    teacher: str
    classes: int
    width: int
    side: int
    padding: int
    augmentation: str
    views: int
    decode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    teacher_size: int
    precision: str
    folded: bool
    dtype: StorageType

    @property
    def digest(self) -> str:
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def row_bytes(self) -> int:
        """Of a row: C logits and D numbers of the embedding, filled up to whole words of four bytes."""
        size = (self.classes + self.width) * np.dtype(self.dtype).itemsize
        return -(-size // 4) * 4


class TeacherTable:
    """One table on disk.

    Args:
        folder: of all tables; this one is in a folder of its own below, named by its key.
        key: see :class:`TableKey`.
        images: (N,) uint32 digests of the images, see :func:`image_digests`.
        positions: (N,) int64, where each image is in its whole data set, so that a run with fewer images shares rows.

    Raises:
        RequestError: what is there is a link, or not a table of this key.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, key: TableKey, images: Marks, positions: Tensor) -> None:
        self.path = inside(folder, key.digest)
        self.key = key
        self.images = images
        self.positions: Slots = positions.numpy().astype(np.int64)
        self.slots = (int(self.positions.max()) + 1) * key.views
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            inside(self.path, name)
        with FileLock(self.path / LOCK):
            self._check_header()
            for name, size in ((ROWS, self.slots * key.row_bytes), (MARKS, self.slots * 4)):
                _extend(self.path / name, size)
        self._rows = np.memmap(self.path / ROWS, np.uint32, "r", shape=(self.slots, key.row_bytes // 4))
        self._marks = np.memmap(self.path / MARKS, np.uint32, "r", shape=(self.slots,))
        flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
        self._files = {name: os.open(self.path / name, flags) for name in (ROWS, MARKS)}

    def _check_header(self) -> None:
        expected = json.loads(json.dumps({"format": FORMAT, **asdict(self.key)}))
        try:
            header = self.header
        except FileNotFoundError:
            write_json(self.path / HEADER, expected)
            return
        for name, value in expected.items():
            if header.get(name) != value:
                raise RequestError(
                    f"teacher_cache: {self.path} is a table of another {name}; delete it, or name another folder"
                )

    # -- rows ---------------------------------------------------------------------------------------------------------

    def slots_of(self, index: Tensor, view: Tensor) -> Slots:
        """(B,) rows of images in views."""
        slots: Slots = self.positions[index.numpy()] * self.key.views + view.numpy()
        return slots

    def read(self, index: Tensor, view: Tensor) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The rows of (B,) images in (B,) views, as (B, C + D) numbers, and which of them are known."""
        slots = self.slots_of(index, view)
        words = self._rows[slots]
        marks = np.asarray(self._marks[slots])
        known = (marks != 0) & (marks == self._mark(words, slots, self.images[index.numpy()]))
        numbers = words.view(self.key.dtype)[:, : self.key.classes + self.key.width]
        return numbers, known

    def write(self, index: Tensor, view: Tensor, numbers: NDArray[Any]) -> None:
        """Writes (B, C + D) numbers into the rows of (B,) images in (B,) views, each before its mark.

        Raises:
            OSError: the disk is full.
        """
        slots, size = self.slots_of(index, view), self.key.row_bytes
        padded = np.zeros((len(slots), size // np.dtype(self.key.dtype).itemsize), self.key.dtype)
        padded[:, : numbers.shape[1]] = numbers
        words = padded.view(np.uint32)
        marks = self._mark(words, slots, self.images[index.numpy()])
        for slot, row in zip(slots.tolist(), words, strict=True):
            _write_at(self._files[ROWS], row.tobytes(), slot * size)
        for slot, mark in zip(slots.tolist(), marks, strict=True):
            _write_at(self._files[MARKS], mark.tobytes(), slot * 4)

    @cached_property
    def _factors(self) -> Marks:
        return _odd_factors(self.key.row_bytes // 4)

    def _mark(self, words: Marks, slots: Slots, images: Marks) -> Marks:
        """(B,) checksums, none of them 0: of the row's bytes, of where it is, and of the image."""
        total = (words * self._factors).sum(axis=1, dtype=np.uint32)
        total += slots.astype(np.uint32) * np.uint32(0x9E3779B1) + images * np.uint32(0x85EBCA77)
        total ^= total >> np.uint32(15)
        return np.where(total == 0, np.uint32(1), total)

    # -- what is known ------------------------------------------------------------------------------------------------

    def marked(self, views: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N, V') which of some views of each image have a mark."""
        marks: NDArray[np.bool_] = np.asarray(self._marks[self.positions[:, None] * self.key.views + views[None]]) != 0
        return marks

    @property
    def bytes(self) -> int:
        """On disk, without the holes."""
        return sum((self.path / name).stat().st_blocks * 512 for name in (ROWS, MARKS))

    @property
    def header(self) -> dict[str, Any]:
        header: dict[str, Any] = read_json(self.path / HEADER)
        return header | checked(header, TABLE, self.path / HEADER)

    def note(self, **values: Any) -> None:
        """Adds to the header, as the teacher's accuracy; the key stays what it is."""
        with FileLock(self.path / LOCK):
            write_json(self.path / HEADER, self.header | values)

    def used(self) -> None:
        """Notes the time, for what was used least recently."""
        os.utime(self.path / HEADER)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}


def _extend(file: Path, size: int) -> None:
    """Makes a file so long at least, with a hole for what is not written; called with the table locked."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Writes with ``pwrite``, for which a full disk is an error; with a memory map it would be a signal."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def image_digests(images: Tensor) -> Marks:
    """(N,) uint32 checksums of uint8 images (N, 3, S, S)."""
    flat = images.contiguous().flatten(1).numpy()
    width = -(-flat.shape[1] // 4) * 4
    factors = _odd_factors(width // 4)
    result = np.empty(len(flat), np.uint32)
    for start in range(0, len(flat), AT_ONCE):  # a part at a time, for the memory
        part = flat[start : start + AT_ONCE]
        padded = np.zeros((len(part), width), np.uint8)
        padded[:, : part.shape[1]] = part
        result[start : start + AT_ONCE] = (padded.view(np.uint32) * factors).sum(axis=1, dtype=np.uint32)
    return result


def file_digests(names: list[str], sizes: list[int]) -> Marks:
    """(N,) uint32 digests of image files, by their names and sizes."""
    digests = [hashlib.sha256(f"{name}\0{size}".encode()).digest()[:4] for name, size in zip(names, sizes, strict=True)]
    return np.frombuffer(b"".join(digests), np.uint32).copy()


def _odd_factors(count: int) -> Marks:
    """Odd numbers: with them a change of any one word changes the sum, whatever the others are."""
    return np.random.default_rng(FORMAT).integers(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
