"""How well each class is recognised, and what it is mistaken for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hkd.report.collect import Run
from hkd.report.layout import Count, Matrix

MOST_SHOWN = 20
"""Classes of a matrix that a page has room for."""


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
    predicted, label, names = _predictions(runs)
    classes = []
    for n, name in enumerate(names):
        guesses = predicted[label == n]
        if len(guesses):
            other, times = next(iter(Counter(guesses[guesses != n].tolist()).most_common(1)), (n, 0))
            mistaken_for = names[other] if times and other < len(names) else ""
            top1 = 100 * float(np.mean(guesses == n))
            classes.append(ClassAccuracy(name, top1, len(guesses) // len(runs), mistaken_for, times))
    return sorted(classes, key=lambda row: row.top1)


def _predictions(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The predicted and the right class of each image of all runs, one after another, and the names of the classes."""
    parts = zip(*(run.folder.predictions() for run in runs), strict=True)
    predicted, label = (np.concatenate(part) for part in parts)
    return predicted, label, [str(name) for name in runs[0].about.get("classes", range(int(label.max()) + 1))]


def confusion_matrix(runs: Sequence[Run]) -> Matrix | None:
    """The predictions of a group's runs by class, of many classes those with the most mistakes; None for a single one.

    The classes stand in their order. A prediction of a class that is not shown is in none of the cells.
    """
    predicted, label, names = _predictions(runs)
    known = (label < len(names)) & (predicted < len(names))
    wrong = known & (label != predicted)
    mistakes = np.bincount(label[wrong], minlength=len(names)) + np.bincount(predicted[wrong], minlength=len(names))
    images = np.bincount(label[known], minlength=len(names))
    there = np.flatnonzero(images + mistakes)
    shown = np.sort(there[np.argsort(-mistakes[there], kind="stable")[:MOST_SHOWN]])
    if len(shown) < 2:
        return None
    place = np.full(len(names), -1)
    place[shown] = np.arange(len(shown))
    both = known & (place[np.where(known, label, 0)] >= 0) & (place[np.where(known, predicted, 0)] >= 0)
    counts = np.zeros((len(shown), len(shown)), dtype=np.int64)
    np.add.at(counts, (place[label[both]], place[predicted[both]]), 1)
    rows = [
        [
            Count(
                f"{count:,}" if count else "",
                round(100 * int(count) / max(int(images[row]), 1)),
                row == column,
                f"{names[row]} taken for {names[column]}: {count:,} of {images[row]:,}",
            )
            for column, count in zip(shown, line, strict=True)
        ]
        for row, line in zip(shown, counts, strict=True)
    ]
    which = f"the {len(shown)} most confused of {len(there)} classes" if len(shown) < len(there) else "all classes"
    caption = f"Confusion matrix of {which}: images of a row's class that were given a column's class, over all runs."
    return Matrix(caption, [names[n] for n in shown], rows)
