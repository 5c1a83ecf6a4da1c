r"""What a frozen teacher says of every view of every image, computed once and kept in a table on disk.

A teacher's output is a function of the image and the view alone, so one table serves every epoch, seed, batch size,
method, trial and student. A row holds all C logits and the embedding. A torn, foreign or outdated row counts as unknown
and is computed again, and several processes read and write one table at the same time, see :mod:`hkd.slots`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.files import inside
from hkd.runtime.records import TABLE, checked
from hkd.slots import HEADER, Places, Slots, Words, odd_factors

FORMAT = 1
StorageType = Literal["float16", "float32"]
AT_ONCE = 4096


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
    """One table on disk, see :class:`hkd.slots.Slots`.

    Args:
        folder: of all tables; this one is in a folder of its own below, named by its key.
        key: see :class:`TableKey`.
        images: (N,) uint32 digests of the images, see :func:`image_digests`.
        positions: (N,) int64, where each image is in its whole data set, so that a run with fewer images shares rows.

    Raises:
        RequestError: what is there is a link, or not a table of this key.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, key: TableKey, images: Words, positions: Tensor) -> None:
        self.path = inside(folder, key.digest)
        self.key = key
        self.images = images
        self.positions: Places = positions.numpy().astype(np.int64)
        header = json.loads(json.dumps({"format": FORMAT, **asdict(key)}))
        count = (int(self.positions.max()) + 1) * key.views
        self._slots = Slots(self.path, header, count, key.row_bytes, "teacher_cache")
        self.note, self.used = self._slots.note, self._slots.used

    # -- rows ---------------------------------------------------------------------------------------------------------

    def slots_of(self, index: Tensor, view: Tensor) -> Places:
        """(B,) rows of images in views."""
        slots: Places = self.positions[index.numpy()] * self.key.views + view.numpy()
        return slots

    def read(self, index: Tensor, view: Tensor) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The rows of (B,) images in (B,) views, as (B, C + D) numbers, and which of them are known."""
        slots = self.slots_of(index, view)
        words = self._slots.rows[slots]
        known = self._slots.known(words, slots, self.images[index.numpy()])
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
        self._slots.write(slots, padded.view(np.uint32), self.images[index.numpy()])

    # -- what is known ------------------------------------------------------------------------------------------------

    def marked(self, views: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N, V') which of some views of each image have a mark."""
        marks: NDArray[np.bool_] = self._slots.marks[self.positions[:, None] * self.key.views + views[None]] != 0
        return marks

    def known(self, views: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N, V') which of them are known, as :meth:`read` says it: every row is read."""
        known = np.empty((len(self.positions), len(views)), np.bool_)
        used = torch.from_numpy(views)
        for rows in torch.split(torch.arange(len(known)), max(1, AT_ONCE // len(views))):
            index, view = rows.repeat_interleave(len(used)), used.repeat(len(rows))
            known[rows.numpy()] = self.read(index, view)[1].reshape(len(rows), len(used))
        return known

    @property
    def bytes(self) -> int:
        """On disk, without the holes."""
        return self._slots.bytes

    @property
    def header(self) -> dict[str, Any]:
        """The key, and what was noted with ``note``."""
        header = self._slots.header
        return header | checked(header, TABLE, self.path / HEADER)


def image_digests(images: Tensor) -> Words:
    """(N,) uint32 checksums of uint8 images (N, 3, S, S)."""
    flat = images.contiguous().flatten(1).numpy()
    width = -(-flat.shape[1] // 4) * 4
    factors = odd_factors(width // 4)
    result = np.empty(len(flat), np.uint32)
    for start in range(0, len(flat), AT_ONCE):  # a part at a time, for the memory
        part = flat[start : start + AT_ONCE]
        padded = np.zeros((len(part), width), np.uint8)
        padded[:, : part.shape[1]] = part
        result[start : start + AT_ONCE] = (padded.view(np.uint32) * factors).sum(axis=1, dtype=np.uint32)
    return result


def file_digests(names: list[str], sizes: list[int]) -> Words:
    """(N,) uint32 digests of image files, by their names and sizes."""
    digests = [hashlib.sha256(f"{name}\0{size}".encode()).digest()[:4] for name, size in zip(names, sizes, strict=True)]
    return np.frombuffer(b"".join(digests), np.uint32).copy()
