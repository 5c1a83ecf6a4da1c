"""What comes from outside: files that may be pipes or devices, text that may move the cursor of a terminal, and
arguments of any type.

Imports nothing heavy.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import stat
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hkd.errors import RequestError
from hkd.options import CONTROLS, options, shown

LARGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors file's header; that of 1,000 tensors is a hundredth of this."""
LONGEST_TEXT = 200
"""Characters of a text from outside that a message repeats."""


def printable(text: object, longest: int = LONGEST_TEXT) -> str:
    """A text from outside as a message repeats it: escaped, on one line, not too long. As :func:`hkd.options.shown`,
    without quotation marks, for names of files and for other libraries' words."""
    words = str(text)[: longest + 1]
    escaped = words if words.isprintable() else words.encode("unicode_escape").decode()
    return escaped if len(escaped) <= longest else f"{escaped[: longest - 1]}…"


def has_controls(text: str) -> bool:
    """Whether a text has what :data:`hkd.options.CONTROLS` names."""
    return CONTROLS.search(text) is not None


class Kind(NamedTuple):
    """What a value that a file holds has to be, and what an error message says of it."""

    holds: Callable[[Any], bool]
    expected: str


def is_text(value: Any, longest: int) -> bool:
    """Whether a value is a text without control characters that is not too long."""
    return isinstance(value, str) and len(value) <= longest and not has_controls(value)


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether a value is a whole number of a range; True and False are none."""
    return type(value) is int and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number of a range; NaN is in none."""
    return type(value) in (int, float) and low <= value <= high


def as_path(path: Any, field: str) -> Path:
    """A path that a caller passed.

    Raises:
        RequestError: it is no path.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(path, bytes):
        raise RequestError(f"{field}: expected a path; got {shown(path)}")
    return Path(path)


def whole_number(field: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number that a caller passed, NumPy's too.

    Raises:
        RequestError: it is none, or out of its range.
    """
    whole = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if whole is not None and low <= whole and (high is None or whole <= high):
        return whole
    upper = "" if high is None else f" to {high:,}"
    raise RequestError(f"{field}: expected a whole number from {low:,}{upper}; got {shown(value)}")


def of_system(path: str | Path) -> bool:
    """Whether a path, its links followed, lies in /proc, /sys or /dev, where reading may wait or do something."""
    parts = Path(os.path.realpath(path)).parts
    return parts[:1] == ("/",) and parts[1:2] in (("proc",), ("sys",), ("dev",)) and parts[1:3] != ("dev", "shm")


def check_outputs(config: Any) -> None:
    """Checks what a configuration names to be written to, before anything is computed.

    Raises:
        RequestError: a folder cannot be made there or cannot be written to, or a folder is where the file would be.
    """
    for entry in options(type(config)):
        path = getattr(config, entry.name)
        if entry.metadata["writes"] and path not in (None, "", *NO_OUTPUT):
            check_output(path, entry.name, file=entry.metadata["writes"] == "file")


NO_OUTPUT = ("off", "auto")
"""Words in the place of a path: nothing is written, or beside the run."""


def check_output(path: str | Path, field: str, *, file: bool = False) -> None:
    """Checks that a folder, or a file, can be written. See :func:`check_outputs`."""
    path = Path(os.path.abspath(as_path(path, field)))
    try:
        if of_system(path):
            raise PermissionError(errno.EPERM, "it belongs to the system")
        if file and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = path.parent if file else path
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{printable(there)} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{printable(there)} cannot be written to")
        longest = os.pathconf(there, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise RequestError(f"{field}: cannot write to {printable(path)} ({error.strerror})") from error


def check_logger(name: str) -> None:
    """Raises :class:`RequestError` for a logger (``--logger``) whose package is not installed.

    TensorBoard is the default, so a run goes on without it (:class:`hkd.runtime.curves.Curves`).
    """
    if name not in ("none", "tensorboard") and not is_installed(name):
        how = "pip install 'hkd[loggers]', or name another"
        raise RequestError(f"logger: {name} is not installed; {how}")


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def check_installed(field: str, extra: str, *packages: str) -> None:
    """Raises :class:`RequestError` if a package of an extra of this one is not installed."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise RequestError(f"{field}: {missing[0]} is not installed; pip install 'hkd[{extra}]'")


def open_regular(path: str | Path, field: str, *, follow: bool = True) -> BinaryIO:
    """Opens a file for reading if it is a regular one: no folder, pipe, socket or device, and nothing of /proc.

    Args:
        path: of the file.
        field: what the error message calls it.
        follow: whether ``path`` may be a link: yes for what a person typed, no for what lies in a run folder.

    Raises:
        RequestError: there is none, or it is anything else.
    """
    path = as_path(path, field)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    name = printable(path, 4096)
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode) and not of_system(path)  # opening a device may do something
        descriptor = os.open(path, flags) if regular else -1
    except FileNotFoundError:
        raise RequestError(f"{field}: no file {name}") from None
    except (OSError, ValueError) as error:  # a ValueError for a path with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{field}: {name} cannot be read ({reason})") from error
    if regular and stat.S_ISREG(os.fstat(descriptor).st_mode):  # it may have changed in between
        return os.fdopen(descriptor, "rb")
    if regular:
        os.close(descriptor)
    raise RequestError(f"{field}: {name} is not a regular file")


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file, without looking at its tensors.

    Returns:
        For each tensor its ``dtype``, ``shape`` and ``data_offsets``, unchecked, and ``__metadata__``. The file is
        left where the tensors begin.

    Raises:
        ValueError: it is too large, cut short, or no JSON mapping.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"a header of {size:,} bytes")
    text = file.read(size)
    if len(text) < size:
        raise ValueError("its header is cut short")
    try:
        header = json.loads(text.decode())
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header
