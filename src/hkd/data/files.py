"""A folder or a zip archive, with one interface to both."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from hkd.errors import RequestError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})

LARGEST_FILE = 256 * 2**20
"""Bytes; no photograph is larger, and a hostile file may declare more to fill the memory."""


class Files(ABC):
    """Files under one root. Names are relative to it, with forward slashes, in sorted order.

    Attributes:
        path: of the folder or archive.
        names: of all files.
        fingerprint: changes when a file is added, removed or rewritten.
    """

    path: Path
    names: list[str]
    fingerprint: str

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def size(self, name: str) -> int:
        """Of a file in bytes."""

    def images(self, folder: str = "") -> list[str]:
        """The names of all images below a folder, or of all there are."""
        prefix = f"{folder}/" if folder else ""
        return [n for n in self.names if n.startswith(prefix) and PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES]

    def subfolders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in a folder, or at the root."""
        depth = len(PurePosixPath(folder).parts)
        parts = (PurePosixPath(name).parts for name in self.names if not folder or name.startswith(f"{folder}/"))
        return sorted({p[depth] for p in parts if len(p) > depth + 1})


class Folder(Files):
    """The files below a folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        digest = hashlib.sha256(str(path.resolve()).encode())
        self.names = []
        for directory, _, files in os.walk(path, followlinks=True):
            inside = [Path(directory, file) for file in files]
            self.names += [file.relative_to(path).as_posix() for file in inside if file.exists()]  # no dangling links
        self.names.sort()
        self._sizes = {}
        for name in self.names:
            status = (path / name).stat()
            self._sizes[name] = status.st_size
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        self.fingerprint = digest.hexdigest()

    def read(self, name: str) -> bytes:
        if self._sizes.get(name, 0) > LARGEST_FILE:
            raise RequestError(f"dataset: {name} in {self.path} is larger than {LARGEST_FILE // 2**20} MiB")
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        return self._sizes[name]


class Archive(Files):
    """Files in a zip archive, read in place, never extracted. Names begin below a single folder around all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise RequestError(f"dataset: {path} is not a readable zip archive ({error})") from error
        for entry in entries:
            _refuse_hostile(path, entry)
        tops = {entry.filename.split("/", 1)[0] for entry in entries if not entry.filename.startswith("__MACOSX/")}
        self._prefix = f"{tops.pop()}/" if len(tops) == 1 else ""
        inside = [e.filename for e in entries if e.filename.startswith(self._prefix)]
        self.names = sorted(name.removeprefix(self._prefix) for name in inside)
        self._sizes = {e.filename.removeprefix(self._prefix): e.file_size for e in entries}
        status = path.stat()
        identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def read(self, name: str) -> bytes:
        if self._archive is None or self._archive[0] != os.getpid():  # a forked worker has its own file position
            self._archive = (os.getpid(), zipfile.ZipFile(self.path))
        try:
            with self._archive[1].open(self._prefix + name) as file:
                return file.read(self._sizes[name] + 1)  # unpacks no more than the archive declares
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise RequestError(f"dataset: cannot read {name} in {self.path} ({error})") from error

    def size(self, name: str) -> int:
        return self._sizes[name]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_archive": None}


def _refuse_hostile(path: Path, entry: zipfile.ZipInfo) -> None:
    """Raises :class:`RequestError` for entries outside the archive, links, and files that would fill the memory."""
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
        raise RequestError(f"dataset: {path} has an entry outside itself, {entry.filename!r}, and is not read")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise RequestError(f"dataset: {path} has a link, {entry.filename!r}, and is not read")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RequestError(f"dataset: {path} has an unusual compression, {entry.filename!r}, and is not read")
    if entry.file_size > LARGEST_FILE:
        raise RequestError(
            f"dataset: {path} has a file of {entry.file_size / 1e9:,.1f} GB, {entry.filename!r}, and is not read"
        )


def open_files(path: Path) -> Files:
    """Opens a folder or a .zip archive.

    Raises:
        RequestError: there is nothing at the path, or it is neither.
    """
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Archive(path)
    raise RequestError(f"dataset: no folder or .zip archive at {path}")
