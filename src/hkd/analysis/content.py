"""A digest of what the images of a data set are, not of where they lie or what their files are called."""

from __future__ import annotations

import hashlib
import os

from hkd.data import Dataset, FileDataset
from hkd.errors import RequestError

_hashed: dict[str, str] = {}
"""Content digests of this process by the state of the files, so that many networks share one reading of them."""


def content_digest(data: Dataset) -> str:
    """A digest of the images, in order, and their labels: of pixels in memory, or of the bytes of files.

    Files are read once a process. They are read again when the size, the time of the last change or the inode of one is
    another; the time is the kernel's (ctime), which no program can set back.
    """
    if not isinstance(data, FileDataset):
        return data.fingerprint
    state = _state(data)
    if state not in _hashed:
        _hashed[state] = _of_bytes(data)
    return _hashed[state]


def _of_bytes(data: FileDataset) -> str:
    digest = hashlib.sha256(data.labels.contiguous().numpy().data)
    for name in data.names:
        try:
            content = data.files.read(name)
        except (RequestError, OSError):  # the loader decides what an unreadable file means
            content = b"unreadable"
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _state(data: FileDataset) -> str:
    """Of the files on disk: those of the images, or the archive that holds them."""
    root = data.files.path
    digest = hashlib.sha256(repr((str(root.resolve()), data.names)).encode())
    digest.update(data.labels.contiguous().numpy().data)
    for path in [root / name for name in data.names] if root.is_dir() else [root]:
        try:
            found = os.stat(path)
        except OSError:
            digest.update(b"missing")
        else:
            digest.update(repr((found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)).encode())
    return digest.hexdigest()
