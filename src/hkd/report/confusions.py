"""How well each class is recognised, and what it is mistaken for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hkd.report.collect import Run


@dataclass(frozen=True)
class ClassAccuracy:
    """One class in a group of runs.

    Attributes:
        name: of the class.
        top1: in percent.
        images: of the class in the test split.
        mistaken_for: the class that wrong predictions name most often; empty if there are none.
        times: how often, over all runs.
    """

    name: str
    top1: float
    images: int
    mistaken_for: str
    times: int


def by_class(runs: Sequence[Run]) -> list[ClassAccuracy]:
    """The classes of a group's test images over all its runs, the lowest accuracy first."""
    parts = zip(*(run.folder.predictions() for run in runs), strict=True)
    predicted, label = (np.concatenate(part) for part in parts)
    names = [str(name) for name in runs[0].about.get("classes", range(int(label.max()) + 1))]
    classes = []
    for n, name in enumerate(names):
        guesses = predicted[label == n]
        if len(guesses):
            other, times = next(iter(Counter(guesses[guesses != n].tolist()).most_common(1)), (n, 0))
            mistaken_for = names[other] if times and other < len(names) else ""
            top1 = 100 * float(np.mean(guesses == n))
            classes.append(ClassAccuracy(name, top1, len(guesses) // len(runs), mistaken_for, times))
    return sorted(classes, key=lambda row: row.top1)
