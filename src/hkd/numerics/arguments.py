"""Checks of what a caller passes to a loss, each a ValueError that names the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

LARGEST = 2**31 - 1


def check_whole(name: str, value: Any, least: int, largest: int = LARGEST) -> None:
    """Raises :class:`ValueError` unless a value is a whole number of a range."""
    if type(value) is bool or not isinstance(value, Integral):
        raise ValueError(f"{name}: expected a whole number; got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name}: expected {least} or more; got {value}")
    if int(value) > largest:
        raise ValueError(f"{name}: expected {largest} or less; got {value}")


def check_number(name: str, value: Any) -> None:
    """Raises :class:`ValueError` unless a value is a finite number."""
    if type(value) is bool or not isinstance(value, Real) or not _is_finite(value):
        raise ValueError(f"{name}: expected a finite number; got {value!r}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
