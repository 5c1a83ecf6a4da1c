"""Which rows of a result are trials of one experiment: those whose runs have equal keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.trained import Trained

Row = Mapping[str, Any]
"""A network's numbers, with what :func:`identity` says of it; as it is read from a result's ``.json``."""


@dataclass(frozen=True)
class Trials:
    """The rows of one experiment, each seed once.

    Attributes:
        label: what a table calls them.
        rows: one or more.
    """

    label: str
    rows: list[Row]

    def values(self, name: str) -> list[float]:
        """One number of each row that has it."""
        return [row[name] for row in self.rows if row.get(name) is not None]


def identity(network: Trained) -> dict[str, Any]:
    """The columns that say which network a row is of: label, key, seed, weights."""
    return {
        "label": network.label,
        "key": network.key,
        "seed": network.seed,
        "weights": str(network.weights),
    }


def by_key(rows: Sequence[Row]) -> list[Trials]:
    """Groups rows by key, in the order of their first; a file of weights without a run is a group of its own.

    Of two networks with the same key and seed the first counts, see :func:`repeated`. Where two groups have the same
    label, the place of the first network's weights is added to it.
    """
    dropped = repeated(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["weights"] not in dropped:
            groups.setdefault(_group(row), []).append(row)
    labels = [_label(own[0]) for own in groups.values()]
    return [
        Trials(label if labels.count(label) == 1 else f"{label} [{_place(own[0])}]", own)
        for label, own in zip(labels, groups.values(), strict=True)
    ]


def repeated(rows: Iterable[Row]) -> dict[str, str]:
    """The weights of networks whose key and seed an earlier row has, each with the weights of the earlier."""
    first: dict[tuple[str, int], str] = {}
    later = {}
    for row in rows:
        if row.get("key") and row["seed"] is not None:
            counted = first.setdefault((row["key"], row["seed"]), row["weights"])
            if counted != row["weights"]:
                later[row["weights"]] = counted
    return later


def repetition_notes(rows: Iterable[Row]) -> list[str]:
    """A line for each network that is not counted."""
    return [
        f"note: {later} is not counted: it has the specification and the seed of {earlier}"
        for later, earlier in repeated(rows).items()
    ]


def _group(row: Row) -> str:
    return row.get("key") or f"file {row['weights']}"


def _label(row: Row) -> str:
    """Results of version 0.1 name it "network" and have no key; without either the weights have a name."""
    return str(row.get("label") or row.get("network") or Path(row["weights"]).name)


def _place(row: Row) -> Path:
    """The run folder, or the file where there is none."""
    weights = Path(row["weights"])
    return weights.parent if row.get("key") else weights
