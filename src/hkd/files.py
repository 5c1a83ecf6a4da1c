"""How this project reads and writes files: as a whole or not at all, never through a link, never more than is meant.

A folder of this project (of a run, a study, a report, an export, a cache) may be a link itself, since a person named
it. What lies in it may not: :func:`inside` makes the paths of such files.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from hkd.errors import RequestError
from hkd.outside import printable

LARGEST_TEXT = 16 * 2**20
"""Bytes of a text file that is read: configurations, metrics and summaries are far smaller."""
DEEPEST = 32
"""Levels of nesting in a YAML or JSON file."""
PARTIAL = ".partial"


def inside(folder: str | Path, *names: str) -> Path:
    """The path of something inside a folder of this project.

    Raises:
        RequestError: the path leads through a link below the folder, or ends in one.
    """
    path = Path(folder)
    for name in names:
        path /= name
        if os.path.islink(path):
            raise RequestError(f"run: {shown_path(path)} is a link; nothing in a folder is read or written through one")
    return path


def shown_path(path: str | Path) -> str:
    """A path as a message repeats it; folders from elsewhere may have names that move a cursor."""
    return printable(path, 4096)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path`` that takes its place when the block ends; where it raises, nothing has changed.

    The new file has a random name and is made by this call alone; what is at ``path``, even a link, is replaced and not
    written through.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(partial, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, for libraries that write to a path: a name in a new folder of this call alone."""
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    folder.mkdir(mode=0o700)
    partial = folder / path.name
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
            folder.rmdir()
    sync_folder(path.parent)


def appending(path: Path) -> BinaryIO:
    """Opens a regular file to write at its end; makes it where there is none.

    Raises:
        RequestError: there is a link, a pipe or anything else.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise RequestError(f"run: cannot write to {shown_path(path)} ({error.strerror})") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "ab")
    os.close(descriptor)
    raise RequestError(f"run: {shown_path(path)} is not a regular file")


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as a whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file that is not a link.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        RequestError: it is a link, no regular file, or too large.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        raise RequestError(f"run: {shown_path(path)} cannot be read ({reason})") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # a folder cannot be made a file object
        os.close(descriptor)
        raise RequestError(f"run: {shown_path(path)} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > largest:
            words = f"({status.st_size:,} bytes; expected at most {largest:,})"
            raise RequestError(f"run: {shown_path(path)} is too large {words}")
        return file.read(largest + 1)


def read_text(path: Path) -> str:
    """A text file in UTF-8; see :func:`read_bytes`."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"run: {shown_path(path)} is corrupt (not UTF-8)") from error


def read_json(path: Path, kind: Callable[..., Any] = dict) -> Any:
    """A JSON file of one kind of value, a mapping if not said otherwise."""
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise RequestError(f"run: {shown_path(path)} is corrupt ({error})") from error
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise RequestError(f"run: {shown_path(path)} is corrupt (expected a JSON {getattr(kind, '__name__', kind)})")
    return value


def parse_json(text: str) -> Any:
    """JSON data that is not nested deeply.

    Raises:
        ValueError: it is anything else; says what in a few words.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level, depth = [one for part in parts for one in part], depth + 1
    return value


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast


def parse_yaml(text: str) -> Any:
    """Plain YAML data: no tags, no aliases, by which a short file can stand for gigabytes, no deep nesting.

    Raises:
        yaml.YAMLError: it is anything else.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("tags are not accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError("nested too deeply")
    return yaml.load(text, Loader=_LOADER)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of options by name.

    Raises:
        RequestError: there is no such file, or it holds something else.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"config: no file {shown_path(path)}") from None
    except RequestError as error:
        raise RequestError(f"config: {str(error).removeprefix('run: ')}") from error
    try:
        values = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"config: {shown_path(path)} is not plain YAML ({printable(reason)})") from error
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RequestError(f"config: {shown_path(path)} is corrupt (expected options by name)")
    return values


def sync_folder(folder: Path) -> None:
    """Makes the new names of files survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
