"""Where runs had their teacher's outputs from: the times of two rows of a table say little without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEAD = "teacher's outputs"


def read_share(summaries: Iterable[Mapping[str, Any]]) -> float | None:
    """How much of the teacher's outputs a table gave, in percent over all trials; None where no run had a table."""
    tables = [summary["teacher_cache"] for summary in summaries if "teacher_cache" in summary]
    images = sum(table["hits"] + table["misses"] for table in tables)
    return 100 * sum(table["hits"] for table in tables) / images if images else None


def in_words(share: float | None, *, distils: bool) -> str:
    """A cell of a table.

    Args:
        share: see :func:`read_share`.
        distils: whether the runs have a teacher.
    """
    if share is None:
        return "computed" if distils else ""
    return f"{share:.0f} % read"
