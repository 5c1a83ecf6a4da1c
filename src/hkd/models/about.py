"""What stands beside the weights in a file: a bounded reader, because files come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import Kind, is_number, is_text, is_whole, open_regular, printable, read_header

MOST_CLASSES = 1_000_000
LONGEST_NAME = 200
"""Characters of a network's name."""
LONGEST_CLASS = 1000
"""Characters of a class's name."""
LONGEST_DATASET = 4200
"""Characters of a data set's name: a path and the word before it."""


def _channels(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_number(one, low, high) for one in value)


# Means and deviations stay where dividing one by another is finite in float32.
FIELDS: Mapping[str, Kind] = {
    "model": Kind(
        lambda v: is_text(v, LONGEST_NAME) and v.isprintable(), f"at most {LONGEST_NAME} printable characters"
    ),
    "num_classes": Kind(lambda v: is_whole(v, 2, MOST_CLASSES), f"a whole number from 2 to {MOST_CLASSES:,}"),
    "classes": Kind(
        lambda v: isinstance(v, list) and 2 <= len(v) <= MOST_CLASSES and all(is_text(c, LONGEST_CLASS) for c in v),
        f"a list of names of at most {LONGEST_CLASS} characters without control characters",
    ),
    "mean": Kind(lambda v: _channels(v, -1e6, 1e6), "3 finite numbers"),
    "std": Kind(lambda v: _channels(v, 1e-30, 1e6), "3 finite numbers above 0"),
    "image_size": Kind(lambda v: is_whole(v, 1, 4096), "a whole number from 1 to 4096"),
    "crop": Kind(lambda v: v in ("fit", "centre"), "fit or centre"),
    "dataset": Kind(
        lambda v: is_text(v, LONGEST_DATASET), f"at most {LONGEST_DATASET} characters without control characters"
    ),
    "epoch": Kind(lambda v: is_whole(v, 0, 10**9), "a whole number from 0"),
    "top1": Kind(lambda v: is_number(v, -1e30, 1e30), "a finite number"),
}
"""All that is read; whatever else stands there is dropped."""


def checked(values: Any, path: str | Path) -> dict[str, Any]:
    """The fields that this package reads, each of its type and in its range; empty if there is nothing.

    Raises:
        RequestError: one is anything else; says which, and names the file.
    """
    place = f"checkpoint: {printable(path, 4096)}"
    if not isinstance(values, dict):
        raise RequestError(f"{place}: expected a mapping beside the weights; got {shown(values)}")
    about = {}
    for name, field in FIELDS.items():
        if name in values:
            if not field.holds(values[name]):
                raise RequestError(f"{place}: {name}: expected {field.expected}; got {shown(values[name])}")
            about[name] = _floats(values[name]) if name in ("mean", "std", "top1") else values[name]
    needed = ("model", "num_classes") if values else ()
    together = ("mean", "std") if "mean" in about or "std" in about else ()
    for name in (*needed, *together):
        if name not in about:
            raise RequestError(f"{place}: {name}: expected {FIELDS[name].expected}; got nothing")
    if "classes" in about and len(about["classes"]) != about["num_classes"]:
        raise RequestError(f"{place}: classes: expected {about['num_classes']:,} names; got {len(about['classes']):,}")
    return about


def _floats(value: Any) -> Any:
    """Whole numbers of JSON as floats."""
    return [float(one) for one in value] if isinstance(value, list) else float(value)


def read_about(path: str | Path) -> dict[str, Any]:
    """What :func:`hkd.save_model` wrote beside the weights: the fields of :data:`FIELDS`, each valid.

    Empty for files of other origin.

    ``model`` and ``num_classes`` are there in any file that this package wrote, ``mean`` and ``std`` together or not at
    all, and there are as many ``classes`` as ``num_classes`` says. No name in it imports anything, see
    :func:`hkd.models.names.model_of_file`.

    Raises:
        RequestError: the file is missing, no regular file, damaged, or says something else: in one line.
    """
    with open_regular(path, "checkpoint") as file:
        if Path(path).suffix != ".safetensors":
            return {}
        try:
            metadata = read_header(file).get("__metadata__", {})
            text = metadata.get("hkd", "{}") if isinstance(metadata, dict) else None
            if not isinstance(text, str):
                raise ValueError("its metadata is no mapping of text to text")
            return checked(json.loads(text), path)
        except RequestError:
            raise
        except (ValueError, RecursionError, OSError) as error:
            raise RequestError(
                f"checkpoint: {printable(path, 4096)} is not a readable safetensors file ({printable(error)})"
            ) from error
