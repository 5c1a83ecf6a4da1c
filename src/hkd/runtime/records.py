"""What the files of run folders and studies hold: each field with its type and its range, because folders come from
anywhere."""

from __future__ import annotations

import ast
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkd.errors import RequestError
from hkd.files import read_bytes, read_json, shown_path
from hkd.options import shown
from hkd.outside import Kind, is_number, is_text, is_whole

LONGEST = 4200
"""Characters of a text: a path and some words."""
LONGEST_HEADER = 1000
"""Bytes of the description of an array of numbers; what is longer may exhaust the parser of Python."""
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes."""
MOST_IMAGES = 1_000_000
MOST_CLASSES = 1_000_000
MOST_STARTS = 1000
"""Of a run that are remembered, the latest."""


class Record(NamedTuple):
    """The fields of a file that are read, whatever else stands there, and those that it cannot be without."""

    fields: Mapping[str, Kind]
    needed: tuple[str, ...] = ()


def checked(values: Any, record: Record, file: Path) -> dict[str, Any]:
    """The fields of a record, each of its type and in its range; what else there is stays out.

    Raises:
        RequestError: one is anything else, or missing; says which, and names the file.
    """
    for name, kind in record.fields.items():
        if name in values and not kind.holds(values[name]):
            raise corrupt(file, f"{name}: expected {kind.expected}; got {shown(values[name])}")
    require(values, record.needed, record, file)
    return {name: values[name] for name in record.fields if name in values}


def require(values: Mapping[str, Any], names: tuple[str, ...], record: Record, file: Path) -> None:
    """Raises :class:`RequestError` for the first of some fields that is missing."""
    for name in names:
        if name not in values:
            raise corrupt(file, f"{name}: expected {record.fields[name].expected}; got nothing")


def corrupt(file: Path, reason: str) -> RequestError:
    """The error for a file that does not hold what it should."""
    return RequestError(f"run: {shown_path(file)} is corrupt ({reason})")


def read_record(file: Path, record: Record) -> dict[str, Any]:
    """The fields of a record that a JSON file holds.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        RequestError: it is a link, no regular file, too large, or holds anything else.
    """
    return checked(read_json(file), record, file)


# -- kinds of values --------------------------------------------------------------------------------------------------


def whole(low: int = 0, high: int = 10**15) -> Kind:
    return Kind(lambda value: is_whole(value, low, high), f"a whole number from {low:,} to {high:,}")


def number(low: float = -1e30, high: float = 1e30) -> Kind:
    return Kind(lambda value: is_number(value, low, high), f"a finite number from {low:g} to {high:g}")


def text(longest: int = LONGEST) -> Kind:
    return Kind(
        lambda value: is_text(value, longest), f"at most {longest:,} characters, none of them a control character"
    )


def listed(kind: Kind, most: int = 100_000) -> Kind:
    return Kind(
        lambda value: isinstance(value, list) and len(value) <= most and all(map(kind.holds, value)),
        f"a list, each {kind.expected}",
    )


def named(kind: Kind, most: int = 1000) -> Kind:
    """Values of one kind by names."""
    names = text()
    return Kind(
        lambda value: isinstance(value, dict) and len(value) <= most
        and all(names.holds(name) and kind.holds(one) for name, one in value.items()),
        f"a mapping of names to {kind.expected}",
    )  # fmt: skip


def optional(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.holds(value), f"{kind.expected}, or null")


def of_record(record: Record) -> Kind:
    """A mapping that has the fields of a record."""
    return Kind(
        lambda value: isinstance(value, dict) and all(name in value for name in record.needed)
        and all(kind.holds(value[name]) for name, kind in record.fields.items() if name in value),
        f"a mapping with {', '.join(record.needed)}, each as this version writes it",
    )  # fmt: skip


TOP1 = number(0, 100)
SECONDS = number(0, 1e12)
SCALAR = Kind(
    lambda value: value is None or isinstance(value, bool) or is_number(value, -1e30, 1e30) or is_text(value, LONGEST),
    "a finite number, a short text, true, false or null",
)

# -- the files --------------------------------------------------------------------------------------------------------

TABLE_OF_RUN = {"hits": whole(), "misses": whole(), "bytes": whole(), "dtype": text()}
CACHED = Record(
    TABLE_OF_RUN | {"teachers": listed(of_record(Record(TABLE_OF_RUN, ("hits", "misses"))))}, ("hits", "misses")
)
"""Of a summary: images whose teacher's output was read and computed, and the table; of several teachers the sums, and
each one's."""
PROVENANCE = Record(
    {
        "command": text(), "commit": optional(text(100)),
        "clean": optional(Kind(lambda value: isinstance(value, bool), "true or false")),
        "versions": named(text(200), 100), "hardware": text(), "data": text(), "teacher": optional(text()),
        "started": text(100), "ended": optional(text(100)),
    },
    ("command", "commit", "clean", "versions", "hardware", "data", "teacher", "started", "ended"),
)  # fmt: skip
"""One start of a run; ``ended`` is null while it works and after it was killed."""
STARTS = Record({"starts": listed(of_record(PROVENANCE), MOST_STARTS)}, ("starts",))
"""``provenance.json``."""
SUMMARY = Record(
    {
        "top1_last": TOP1, "top1_best": TOP1, "best_epoch": whole(), "top5_last": TOP1, "balanced_accuracy": TOP1,
        "teacher_top1": TOP1, "teachers_top1": listed(TOP1), "teacher_cache": of_record(CACHED), "epochs": whole(),
        "seconds": SECONDS, "images_per_second": SECONDS, "skipped_steps": whole(), "student": text(),
        "parameters": whole(), "train_images": whole(), "test_images": whole(), "device": text(), "machine": text(),
        "torch": text(), "python": text(), "hkd": text(), "key": text(),
        "provenance": listed(of_record(PROVENANCE), MOST_STARTS),
    },
    ("top1_last",),
)  # fmt: skip
"""``summary.json``."""
RESULT = ("top1_last", "top1_best", "best_epoch", "top5_last", "epochs")
"""The fields of a summary that a finished run is known by."""
FAILURE = Record(
    {
        "state": Kind(lambda value: value in ("failed", "pruned"), "failed or pruned"),
        "message": Kind(lambda value: isinstance(value, str) and len(value) <= LONGEST, "a text that is not too long"),
        "status": whole(-255, 255),
    },
    ("state", "message"),
)
"""``failed.json``."""
LOGGED = Record({"logger": text(), "id": text(200)}, ("logger", "id"))
"""``logger.json``."""
ROW = Record({"epoch": whole(-(10**9), 10**9)}, ("epoch",))
"""A line of ``metrics.jsonl``; its other fields are :data:`METRICS`."""
METRICS = named(number())
STATE = Record(
    {
        "epoch": whole(-(10**9), 10**9), "step": whole(), "sums": Kind(lambda value: isinstance(value, dict), "sums"),
        "epoch_seconds": SECONDS, "rows": listed(METRICS, 10**7),
        "best_top1": Kind(lambda value: value == -np.inf or TOP1.holds(value), TOP1.expected), "best_epoch": whole(),
        "seconds": SECONDS, "images": whole(), "skipped_steps": whole(),
    },
)  # fmt: skip
"""How far a run is, in ``last.pt``."""
NETWORK = {
    "label": text(), "network": text(), "key": optional(text()), "seed": optional(whole()), "weights": text(),
}  # fmt: skip
"""What a row of a result says of its network; version 0.1 wrote ``network`` and neither label nor key."""
POINT = Record({"method": text(), "top1_last": TOP1}, ("method", "top1_last"))
TRY = Record(
    {"try": whole(), "state": text(), "top1_holdout": optional(TOP1), "values": named(SCALAR)}, ("try", "values")
)
PROBE = Record(
    NETWORK | {"dataset": Kind(lambda value: is_text(value, LONGEST) and value not in NETWORK, "a name"), "top1": TOP1},
    ("seed", "weights", "dataset", "top1"),
)


def embedding_row(measures: tuple[str, ...]) -> Record:
    """A row of ``topology.json``; results of version 0.1 lack some of the measures."""
    return Record(NETWORK | dict.fromkeys(measures, optional(number())), ("seed", "weights"))


SWEEP = Record(
    {"field": text(), "values": listed(SCALAR), "methods": listed(text()), "points": listed(of_record(POINT))},
    ("field", "values", "methods", "points"),
)
SEARCH = Record(
    {
        "search": listed(text()), "method": text(), "best": optional(of_record(TRY)),
        "tries": listed(of_record(TRY)),
    },
    ("method", "best", "tries"),
)  # fmt: skip
TRANSFER = Record(
    {"rows": listed(of_record(PROBE)), "protocol": listed(text()), "datasets": listed(text(), 1000)},
    ("rows", "protocol", "datasets"),
)
TABLE = Record({"teacher": text(), "top1": named(TOP1, 10_000)})
"""``header.json`` of a table of a teacher's outputs, beside the key that names the table."""

# -- arrays -----------------------------------------------------------------------------------------------------------


def read_arrays(file: Path, shapes: Mapping[str, tuple[str, int]], largest: int) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` file. What it declares is compared with what it holds before memory is taken for it.

    Args:
        file: the file.
        shapes: for each array its kind in NumPy's letters ("i", "f") and its number of dimensions.
        largest: bytes of the file, and of all arrays together.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        RequestError: it is a link, no regular file, too large, or holds anything else.
    """
    content = read_bytes(file, largest)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > largest:
                raise ValueError("its arrays are too large")
            if any(entry.compress_type not in COMPRESSIONS for entry in archive.infolist()):
                raise ValueError("compressed otherwise than NumPy does")
            return {name: _array(archive.read(f"{name}.npy"), *shape) for name, shape in shapes.items()}
    except KeyError as error:
        raise corrupt(file, f"{error.args[0]}") from error
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error, struct.error,
            RuntimeError, SyntaxError, MemoryError) as error:  # fmt: skip
        raise corrupt(file, shown(" ".join(str(error).split())).strip("'\"")) from error


def _array(content: bytes, kind: str, dimensions: int) -> NDArray[Any]:
    """An array in NumPy's format (NEP 1), without copying it and without objects."""
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        raise ValueError("no array of NumPy")
    start = 10 if content[6] == 1 else 12
    end = start + int.from_bytes(content[8:start], "little")
    if end - start > LONGEST_HEADER:
        raise ValueError("an array with a long header")
    header = ast.literal_eval(content[start:end].decode("latin-1").strip())
    if not isinstance(header, dict) or not isinstance(header.get("descr"), str):
        raise ValueError("no array of numbers")
    dtype, shape = np.dtype(header["descr"]), header.get("shape")
    if dtype.kind != kind or not isinstance(shape, tuple) or len(shape) != dimensions or header.get("fortran_order"):
        raise ValueError(f"expected an array of {dimensions} dimensions and kind {kind}; got {dtype} {shape}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    if len(content) - end != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError(f"an array of shape {shape} in {len(content) - end:,} bytes")
    return np.frombuffer(content, dtype, offset=end).reshape(shape)
