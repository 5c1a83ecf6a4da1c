"""Every regular file below a folder, once."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

from hkd.errors import RequestError
from hkd.outside import of_system, printable

MOST_FILES = 5_000_000
"""Files, and folders, of a data set."""

NOT_UTF8 = "whose names are not UTF-8"
NOT_REGULAR = "that are not regular files"
UNREADABLE = "that cannot be read"
TWICE = "that a link leads to a second time"


class File(NamedTuple):
    """Of a file: its size in bytes, and when it was last changed, in nanoseconds."""

    size: int
    changed: int


def walk(root: Path) -> tuple[dict[str, File], Counter[str]]:
    """The regular files below a folder, and how many entries were skipped for which reason.

    Links are followed, and each folder is visited once, however many links lead to it: first the folders that lie in
    the tree themselves, then those that links lead to, in the order of their names.

    Returns:
        The files by their names relative to the folder, with forward slashes; and counts by reason, such as
        :data:`NOT_UTF8`. Links that lead nowhere are not counted.

    Raises:
        RequestError: the folder or a link in it leads into /proc, /sys or /dev, or there are too many files.
    """
    files: dict[str, File] = {}
    skipped: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    devices: dict[int, bool] = {}  # whether what is on a device is the system's: asked once for each, for speed
    inside, linked = deque([""]), deque[str]()
    while inside or linked:
        folder = (inside or linked).popleft()
        try:
            status = os.stat(root / folder)
            with os.scandir(root / folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            skipped[UNREADABLE] += 1
            continue
        _refuse_system(root, folder, status.st_dev, devices)
        if (status.st_dev, status.st_ino) in seen:
            skipped[TWICE] += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in listed:
            name = f"{folder}/{entry.name}" if folder else entry.name
            kind = _kind(entry)
            if isinstance(kind, str):
                skipped[kind] += 1
            elif kind is not None:
                _refuse_system(root, name, kind.st_dev, devices)
                if stat.S_ISDIR(kind.st_mode):
                    (linked if entry.is_symlink() else inside).append(name)
                else:
                    files[name] = File(kind.st_size, kind.st_mtime_ns)
        if max(len(files), len(seen) + len(inside) + len(linked)) > MOST_FILES:
            raise RequestError(f"dataset: {root} has more than {MOST_FILES:,} files or folders")
    return files, skipped


def _kind(entry: os.DirEntry[str]) -> os.stat_result | str | None:
    """What an entry, or what it links to, is; else the reason to skip it; None for a link that leads nowhere."""
    try:
        entry.name.encode()
        status = entry.stat()
    except UnicodeEncodeError:
        return NOT_UTF8
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else NOT_REGULAR


def _refuse_system(root: Path, name: str, device: int, devices: dict[int, bool]) -> None:
    if device not in devices:
        devices[device] = of_system(root / name)
    if devices[device]:
        raise RequestError(
            f"dataset: {printable(root / name, 4096)} leads to files of the operating system and is not read"
        )
