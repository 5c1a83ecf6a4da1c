"""Options: a field of a dataclass with the sentence, the range and the role in a run's key that belong to it.

Imports nothing heavy, so that the command line answers at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields
from functools import cache
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hkd.errors import RequestError

SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line separators and halves of surrogate pairs: no name needs them, and printed they move the
cursor of a terminal, or cannot be printed."""
LARGEST_WHOLE = 2**31 - 1
"""The largest whole number of a field without a bound."""
LONGEST_TEXT = 4096
"""Characters of an option's text, as many as a path may have."""
LONGEST_SHOWN = 80
"""Characters of a value that an error message repeats."""


def option(  # the word argparse uses
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    most: int = LARGEST_WHOLE,
    key: bool = True,
    neutral: Any = MISSING,
    flat: str | None = None,
    writes: Literal["", "folder", "file"] = "",
) -> Any:
    """A field with the sentence that explains it on the command line.

    Args:
        default: its value; a dict stands for a fresh one each time.
        help: the sentence.
        ge, gt, le, lt: its range; numbers are finite in any case.
        most: of a size without a natural bound, what no machine has room for.
        key: whether it decides what is learnt, and so takes part in :meth:`hkd.RunSpec.key`.
        neutral: the value that does what was done before the field was there, and so does not enter the key.
        flat: its name on the command line and on disk, where that is not the field's.
        writes: what it names that is written to; see :func:`hkd.outside.check_outputs`.
    """
    metadata = {
        "help": help,
        "range": {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None},
        "most": most,
        "key": key,
        "neutral": neutral,
        "flat": flat,
        "writes": writes,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def recorded(default: Any, flat: str, *, neutral: Any = MISSING) -> Any:
    """A field that is determined when the run starts: it is in ``config.yaml`` and in the key, and is no option."""
    return field(default=default, metadata={"recorded": True, "key": True, "neutral": neutral, "flat": flat})


def options(config: type) -> list[Field[Any]]:
    """The fields of a dataclass that are options."""
    return [entry for entry in fields(config) if "help" in entry.metadata]


def default_of(entry: Field[Any]) -> Any:
    """The default of a field."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


@cache
def hints_of(config: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(config)


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks a dataclass, and puts what its fields hold into their types: a path that is no text, a number of NumPy's.

    Raises:
        RequestError: a field is of the wrong type or out of its range, or its text is no name.
    """
    kind: type = type(config)
    hints = hints_of(kind)
    for entry in fields(config):
        name = prefix + (entry.metadata.get("flat") or entry.name)
        given = getattr(config, entry.name)
        value = coerce(name, given, hints[entry.name])
        check_range(name, value, entry.metadata.get("range", {}), entry.metadata.get("most", LARGEST_WHOLE))
        check_text(name, value, empty=default_of(entry) == "")
        if type(value) is not type(given):
            object.__setattr__(config, entry.name, value)


def coerced(config: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values for a dataclass, each in the type that its field declares: a list from YAML becomes a tuple."""
    hints = hints_of(config)
    return {name: coerce(prefix + name, value, hints[name]) for name, value in values.items()}


def coerce(name: str, value: Any, hint: Any) -> Any:  # noqa: PLR0911, PLR0912  (a case for each kind of type)
    """A value in the type that a field declares.

    A whole number serves as a float, a number of NumPy's as Python's, a list as a tuple, a path as text, and text like
    ``1e-3``, which YAML does not take for a number, as a float; nothing else is converted.

    Raises:
        RequestError: it is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    if origin in (Union, UnionType):
        for one in arguments:
            try:
                return coerce(name, value, one)
            except RequestError:
                continue
    elif origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(coerce(name, item, arguments[0]) for item in value)
        if len(value) == len(arguments):
            return tuple(coerce(name, item, one) for item, one in zip(value, arguments, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return {coerce(name, k, arguments[0]): coerce(_item(name, k), v, arguments[1]) for k, v in value.items()}
    elif hint is float and isinstance(value, str) and len(value) <= LONGEST_SHOWN and SCIENTIFIC.fullmatch(value):
        return float(value)
    elif hint is float and type(value) is not bool and isinstance(value, Real):
        if not isinstance(value, Integral) or abs(int(value)) < 2**1000:
            return float(value)
    elif hint is int and type(value) is not bool and isinstance(value, Integral):
        return int(value)
    elif hint is str and isinstance(value, PurePath):
        return str(value)
    elif hint in (None, NoneType) and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    hint_of_side = ""  # images are squares, and people write 64x64
    if name.endswith("image_size") and (sides := re.fullmatch(r"(\d{1,5})\s*[x×*,]\s*\d{1,5}", str(value)[:20])):
        hint_of_side = f"; one side says it, as images are squares: {sides[1]}"
    raise RequestError(f"{name}: expected {accepted(hint)}; got {shown(value)}{hint_of_side}")


def _item(name: str, key: Any) -> str:
    """What an error message calls an item of a mapping."""
    return f"{name}.{shown(key).strip(chr(39))}"


def accepted(hint: Any) -> str:
    """A type in the words of an error message."""
    words = {int: "int", float: "float", str: "str", bool: "bool", NoneType: "nothing", None: "nothing"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(accepted(one) for one in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(accepted(one) for one in arguments)}"
    if origin in (tuple, list):
        return f"a list of {accepted(arguments[0])}"
    if origin is dict:
        return f"a mapping of {accepted(arguments[0])} to {accepted(arguments[1])}"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def check_range(name: str, value: Any, bounds: Mapping[str, float], most: int = LARGEST_WHOLE) -> None:
    """Raises :class:`RequestError` for a number that is not finite or out of its range; looks into tuples and dicts."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_range(_item(name, key), item, bounds, most)
    elif isinstance(value, tuple | list):
        for item in value:
            check_range(name, item, bounds, most)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        holds = {
            "ge": lambda bound: value >= bound,
            "gt": lambda bound: value > bound,
            "le": lambda bound: value <= bound,
            "lt": lambda bound: value < bound,
        }
        finite = math.isfinite(value) if isinstance(value, float) else abs(value) < 2**1000  # a float can hold it
        if not finite or not all(holds[kind](bound) for kind, bound in bounds.items()):
            raise RequestError(f"{name}: expected {range_words(bounds)}; got {shown(value)}")
        if isinstance(value, int) and value > most and not bounds.keys() & {"le", "lt"}:
            raise RequestError(f"{name}: expected {most} or less; got {shown(value)}")


def check_text(name: str, value: Any, *, empty: bool = False) -> None:
    """Raises :class:`RequestError` for a text that is no name, which is empty, too long or has control characters;
    looks into tuples and dicts."""
    if isinstance(value, Mapping):
        value = (*value, *value.values())
    if isinstance(value, tuple | list):
        for item in value:
            check_text(name, item)
    elif isinstance(value, str):
        if not (value or empty):
            raise RequestError(f"{name}: expected a name; got an empty one")
        if CONTROLS.search(value):
            raise RequestError(f"{name}: expected text without control characters; got {shown(value)}")
        if len(value) > LONGEST_TEXT:
            raise RequestError(f"{name}: expected at most {LONGEST_TEXT} characters; got {len(value):,}")


def range_words(bounds: Mapping[str, float]) -> str:
    """A range in the words of an error message."""
    low = next((kind for kind in ("ge", "gt") if kind in bounds), None)
    high = next((kind for kind in ("le", "lt") if kind in bounds), None)
    if low and high:
        left, right = ("[" if low == "ge" else "("), ("]" if high == "le" else ")")
        return f"a number in {left}{bounds[low]}, {bounds[high]}{right}"
    if low:
        return f"{bounds[low]} or more" if low == "ge" else f"a number above {bounds[low]}"
    if high:
        return f"{bounds[high]} or less" if high == "le" else f"a number below {bounds[high]}"
    return "a finite number"


def shown(value: Any) -> str:
    """A value as an error message repeats it: escaped, on one line, not too long."""
    try:
        text = repr(value[: 2 * LONGEST_SHOWN]) if isinstance(value, str) else str(value)
    except ValueError:  # Python does not write integers of thousands of digits
        text = "an integer of many digits"
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def key_values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields that decide what is learnt, by their flat names, without those at their neutral values."""
    for entry in fields(config):
        if entry.metadata.get("key", True):
            value, neutral = getattr(config, entry.name), entry.metadata.get("neutral", MISSING)
            if neutral is MISSING or value != neutral:
                yield prefix + (entry.metadata.get("flat") or entry.name), value
