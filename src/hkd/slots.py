"""Files of slots of one size, each with a checksum, that several processes share and may be killed while they write.

A folder holds ``header.json`` (what the slots are of), sparse ``rows.bin`` with the slots, and ``marks.bin`` with a
uint32 for each: 0 where nothing is known, else a checksum of the slot's bytes, of its place, and of whom it belongs to,
so that a torn, foreign or outdated slot is never believed. A slot is written first and its mark afterwards; where two
processes write the same slot at once, a mixture of both does not have the mark of either.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from hkd.errors import RequestError
from hkd.files import inside, read_json, write_json

FILES = HEADER, ROWS, MARKS, LOCK = "header.json", "rows.bin", "marks.bin", ".lock"
Words = NDArray[np.uint32]
Places = NDArray[np.int64]


class Slots:
    """A folder of slots, made if there is none.

    Args:
        folder: its own.
        header: what decides what the slots hold, by name; JSON values.
        count: slots; a file that has more keeps them.
        size: bytes of a slot, a multiple of 4.
        field: what an error message begins with.

    Raises:
        RequestError: the folder holds something else, or links.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, header: dict[str, Any], count: int, size: int, field: str) -> None:
        self.path, self.size, self.field = folder, size, field
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            inside(folder, name)
        with FileLock(folder / LOCK):
            self._check_header(header)
            self._files = {ROWS: _opened(folder / ROWS, count * size), MARKS: _opened(folder / MARKS, count * 4)}
        for file in self._files.values():
            weakref.finalize(self, file.close)
        self.rows, self.marks = (
            np.asarray(np.memmap(self._files[name], np.uint32, "r", shape=shape))
            for name, shape in ((ROWS, (count, size // 4)), (MARKS, (count,)))
        )

    def _check_header(self, expected: dict[str, Any]) -> None:
        try:
            header = self.header
        except FileNotFoundError:
            write_json(self.path / HEADER, expected)
            return
        for name, value in expected.items():
            if header.get(name) != value:
                raise RequestError(
                    f"{self.field}: {self.path} is a table of another {name}; delete it, or name another folder"
                )

    @cached_property
    def _factors(self) -> Words:
        return odd_factors(self.size // 4)

    def checksums(self, words: Words, places: Places, owners: Words) -> Words:
        """(B,) marks, none of them 0, of the first words (B, W) of slots (B,), which belong to owners (B,)."""
        total: Words = (words * self._factors[: words.shape[1]]).sum(axis=1, dtype=np.uint32)
        total += places.astype(np.uint32) * np.uint32(0x9E3779B1) + owners * np.uint32(0x85EBCA77)
        total ^= total >> np.uint32(15)
        return np.where(total == 0, np.uint32(1), total)

    def known(self, words: Words, places: Places, owners: Words) -> NDArray[np.bool_]:
        """(B,) whether words (B, W), as they were read from slots (B,), are what their marks say."""
        marks = self.marks[places]
        known: NDArray[np.bool_] = (marks != 0) & (marks == self.checksums(words, places, owners))
        return known

    def write(self, places: Places, words: Words, owners: Words) -> None:
        """Writes words (B, W) to the beginning of slots (B,), each before its mark.

        Raises:
            OSError: the disk is full.
        """
        marks = self.checksums(words, places, owners)
        for place, row in zip(places.tolist(), words, strict=True):
            _write_at(self._files[ROWS].fileno(), row.tobytes(), place * self.size)
        for place, mark in zip(places.tolist(), marks, strict=True):
            _write_at(self._files[MARKS].fileno(), mark.tobytes(), place * 4)

    @property
    def bytes(self) -> int:
        """On disk, without the holes."""
        return sum(os.fstat(file.fileno()).st_blocks * 512 for file in self._files.values())

    @property
    def header(self) -> dict[str, Any]:
        return dict(read_json(self.path / HEADER))

    def note(self, **values: Any) -> None:
        """Adds to the header; what it was made with stays."""
        with FileLock(self.path / LOCK):
            write_json(self.path / HEADER, self.header | values)

    def used(self) -> None:
        """Notes the time, for what was used least recently."""
        os.utime(self.path / HEADER)


def _opened(path: Path, size: int) -> Any:
    """A file of so many bytes at least, with a hole for what is not written; never through a link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666), "r+b", buffering=0)
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size < size:
        os.ftruncate(file.fileno(), size)
    return file


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Writes with ``pwrite``, for which a full disk is an error; with a memory map it would be a signal."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def odd_factors(count: int) -> Words:
    """Odd numbers: with them a change of any one word changes the sum, whatever the others are."""
    return np.random.default_rng(1).integers(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
