"""A folder or a zip archive, with one interface to both."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path, PurePosixPath

from hkd.data.formats import readable_suffixes
from hkd.data.walk import MOST_FILES, walk
from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import has_controls, open_regular, printable

LARGEST_FILE = 256 * 2**20
"""Bytes; no photograph is larger, and a hostile file may declare more to fill the memory."""

BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, LookupError, ValueError, RuntimeError,
    OverflowError,
)  # fmt: skip
"""What :mod:`zipfile` raises for archives that are damaged, encrypted, or made to do harm."""


class Files(ABC):
    """Files under one root. Names are relative to it, with forward slashes, in sorted order.

    Attributes:
        path: of the folder or archive.
        names: of all files.
        prefix: what stands before each name in the folder or archive itself, with its slash.
        fingerprint: changes when a file is added, removed or rewritten.
    """

    path: Path
    names: list[str]
    prefix: str = ""
    fingerprint: str

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def size(self, name: str) -> int:
        """Of a file in bytes."""

    @abstractmethod
    def empty_folders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in a folder, or at the root, below which there is no file at all."""

    def images(self, folder: str = "") -> list[str]:
        """The names of all images below a folder, or of all there are."""
        suffixes = readable_suffixes()
        return [name for name in self.below(folder) if PurePosixPath(name).suffix.lower() in suffixes]

    def below(self, folder: str) -> list[str]:
        """The names of all files below a folder, or of all there are."""
        return [name for name in self.names if name.startswith(f"{folder}/")] if folder else self.names

    def subfolders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in a folder, or at the root."""
        depth = len(PurePosixPath(folder).parts)
        parts = (PurePosixPath(name).parts for name in self.names if not folder or name.startswith(f"{folder}/"))
        return sorted({p[depth] for p in parts if len(p) > depth + 1})


class Folder(Files):
    """The regular files below a folder on disk, see :func:`hkd.data.walk.walk`. Says once what it skips."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files, skipped = walk(path)
        self.names = sorted(self._files)
        digest = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape"))
        for name in self.names:
            size, changed = self._files[name]
            digest.update(f"{name}\0{size}\0{changed}\n".encode())
        self.fingerprint = digest.hexdigest()
        for reason, count in sorted(skipped.items()):
            warn(f"skipped files or folders in {printable(path, 4096)} {reason}: {count:,}")

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise RequestError(f"dataset: no file {printable(name)} in {self.path}")
        with open_regular(self.path / name, "dataset") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise RequestError(f"dataset: {printable(name)} in {self.path} is larger than {LARGEST_FILE // 2**20} MiB")
        return data

    def size(self, name: str) -> int:
        return self._files[name].size if name in self._files else 0

    def empty_folders(self, folder: str = "") -> list[str]:
        try:
            with os.scandir(self.path / folder) as entries:
                there = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except OSError:  # walk has counted it, and so it has names that are not UTF-8
            return []
        bare = there.difference(self.subfolders(folder))
        return sorted(
            n for n in bare if not has_controls(n) and not any(f for *_, f in os.walk(self.path / folder / n))
        )


class Archive(Files):
    """Files in a zip archive, read in place, never extracted. Names begin below a single folder around all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                listed = archive.infolist()
            folders = {entry.filename for entry in listed if entry.is_dir()}  # a name may be empty, which breaks this
        except BROKEN as error:
            raise RequestError(f"dataset: {path} is not a readable zip archive ({printable(error)})") from error
        entries = [entry for entry in listed if entry.filename not in folders]
        if len(listed) > MOST_FILES:
            raise RequestError(f"dataset: {path} has more than {MOST_FILES:,} files")
        for entry in entries:
            _refuse_hostile(path, entry)
        tops = {entry.filename.split("/", 1)[0] for entry in entries if not entry.filename.startswith("__MACOSX/")}
        self.prefix = f"{tops.pop()}/" if len(tops) == 1 else ""
        inside = {e.filename: e.file_size for e in entries if e.filename.startswith(self.prefix)}
        self._sizes = {name.removeprefix(self.prefix): size for name, size in inside.items()}
        self.names = sorted(self._sizes)
        self._folders = [name.removeprefix(self.prefix) for name in sorted(folders)]
        status = path.stat()
        identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        self.fingerprint = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def read(self, name: str) -> bytes:
        try:
            if self._archive is None or self._archive[0] != os.getpid():  # a forked worker has its own file position
                self._archive = (os.getpid(), zipfile.ZipFile(self.path))
            with self._archive[1].open(self.prefix + name) as file:
                return file.read(self._sizes[name] + 1)  # unpacks no more than the archive declares
        except BROKEN as error:
            raise RequestError(f"dataset: cannot read {printable(name)} in {self.path} ({printable(error)})") from error

    def size(self, name: str) -> int:
        return self._sizes.get(name, 0)

    def empty_folders(self, folder: str = "") -> list[str]:
        depth = len(PurePosixPath(folder).parts)
        inside = [PurePosixPath(one).parts for one in self._folders if not folder or one.startswith(f"{folder}/")]
        return sorted({parts[depth] for parts in inside if len(parts) > depth}.difference(self.subfolders(folder)))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_archive": None}


def _refuse_hostile(path: Path, entry: zipfile.ZipInfo) -> None:
    """Raises :class:`RequestError` for entries outside the archive, links, and files that would fill the memory."""
    name, shown_name = entry.filename.replace("\\", "/"), shown(entry.filename)
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
        raise RequestError(f"dataset: {path} has an entry outside itself, {shown_name}, and is not read")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise RequestError(f"dataset: {path} has a link, {shown_name}, and is not read")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RequestError(f"dataset: {path} has an unusual compression, {shown_name}, and is not read")
    if entry.file_size > LARGEST_FILE:
        raise RequestError(
            f"dataset: {path} has a file of {entry.file_size / 1e9:,.1f} GB, {shown_name}, and is not read"
        )


@lru_cache(maxsize=1024)
def warn(text: str) -> None:
    """Says something about a data set, once a process: its splits are opened one after the other."""
    print(f"warning: {text}", file=sys.stderr)


def open_files(path: Path) -> Files:
    """Opens a folder or a .zip archive.

    Raises:
        RequestError: there is nothing at the path, or it is neither.
    """
    if os.path.isdir(path):
        return Folder(path)
    if os.path.isfile(path):
        open_regular(path, "dataset").close()
        return Archive(path)
    raise RequestError(f"dataset: no folder or .zip archive at {printable(path)}")
