"""The results of a comparison, read from run folders alone."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.analysis.bootstrap import Interval, paired_bootstrap, paired_t
from hkd.report.outputs import read_share
from hkd.report.published import published
from hkd.runtime.run_folder import RunFolder
from hkd.spec import PLUS_KD, RunSpec

MOST_IMAGES = 200_000
"""Test images of an interval: what is drawn takes 16 kB of memory for each."""
OURS = ("hkd", "hkd2")
"""The methods that are no baseline, in all their forms."""


@dataclass(frozen=True)
class Row:
    """One method between one teacher and one student.

    Attributes:
        label: the line of the recipe.
        method: the method without settings: "ce", "hkd", "hkd+kd".
        runs: the folders of its trials by seed.
        note: why runs are missing, where some are.
        spec: of its trials, resolved; None where nothing is known of them.
    """

    label: str
    method: str
    runs: dict[int, RunFolder]
    note: str = ""
    spec: RunSpec | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is a form of HKD."""
        return self.method.removesuffix(PLUS_KD) in OURS

    @property
    def mean(self) -> float | None:
        """The mean accuracy of the last epoch in percent."""
        values = self.values("top1_last")
        return statistics.fmean(values) if values else None

    @cached_property
    def summaries(self) -> dict[int, dict[str, Any]]:
        """The results of the finished trials by seed."""
        summaries = {seed: run.summary for seed, run in self.runs.items()}
        return {seed: summary for seed, summary in summaries.items() if summary is not None}

    def values(self, name: str) -> list[float]:
        """One number of each finished trial that has it."""
        return [summary[name] for summary in self.summaries.values() if name in summary]

    def against(self, other: Row) -> Interval | None:
        """How much better it is, over the trials that both have finished; None without any, or of other or too many
        test images."""
        seeds = self._shared_seeds(other)
        if not seeds:
            return None
        ours, theirs = (tuple(_predictions(row.runs[seed]) for seed in seeds) for row in (self, other))
        return _difference(ours, theirs)

    def against_by_seed(self, other: Row) -> Interval | None:
        """The same with the test images taken as given, see :func:`hkd.analysis.bootstrap.paired_t`; None for fewer
        than 2 trials that both have finished."""
        seeds = self._shared_seeds(other)
        return paired_t(*([row.summaries[seed]["top1_last"] for seed in seeds] for row in (self, other)))

    def _shared_seeds(self, other: Row) -> list[int]:
        """The trials that both have finished; none of a line with itself."""
        return sorted(self.summaries.keys() & other.summaries.keys()) if self.label != other.label else []


@dataclass(frozen=True)
class _Predictions:
    """A finished run's predictions, as its file holds them at a time."""

    run: Path
    modified: int

    def correct(self) -> NDArray[np.bool_]:
        predicted, label = RunFolder(self.run).predictions()
        return np.asarray(predicted == label)


def _predictions(run: RunFolder) -> _Predictions:
    file = run.file("predictions.npz")
    return _Predictions(run.path, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=4096)
def _difference(ours: tuple[_Predictions, ...], theirs: tuple[_Predictions, ...]) -> Interval | None:
    """How much better some trials are; computed once, as tables are written anew after every run of a study."""
    pairs = [(mine.correct(), other.correct()) for mine, other in zip(ours, theirs, strict=True)]
    if len({part.shape for pair in pairs for part in pair}) > 1:  # of other test images
        return None
    if pairs[0][0].size > MOST_IMAGES:
        return None
    left, right = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return paired_bootstrap(left, right)


@dataclass(frozen=True)
class Pair:
    """All methods between one teacher and one student."""

    teacher: str
    student: str
    rows: tuple[Row, ...]

    def row(self, label: str) -> Row | None:
        """The row of a line of the recipe."""
        return next((row for row in self.rows if row.label == label), None)

    @property
    def teacher_top1(self) -> float | None:
        """The teacher's accuracy in percent, as a student's run measured it."""
        for row in self.rows:
            for summary in row.summaries.values():
                if "teacher_top1" in summary:
                    return float(summary["teacher_top1"])
        return None

    def baseline(self, named: str | None) -> Row | None:
        """The row that others are compared with: the named one, else, of those with most trials, the best but HKD."""
        if named is not None:
            return self.row(named)
        others = [row for row in self.rows if row.mean is not None and not row.is_ours]
        return max(others, key=lambda row: (len(row.summaries), row.mean), default=None)

    def relative_improvement(self, label: str, over: str) -> float | None:
        r"""The term of one pair in the paper's average relative improvement (ARI), in percent.

        .. math:: \frac{a_{\text{label}} - a_{\text{over}}}{a_{\text{over}} - a_{\text{student alone}}} \cdot 100

        None where a mean is missing, or where the method compared with does not improve on the student alone.
        """
        rows = map(self.row, (label, over, "ce"))
        best, other, alone = (None if row is None else row.mean for row in rows)
        if best is None or other is None or alone is None or other <= alone:
            return None
        return (best - other) / (other - alone) * 100


@dataclass(frozen=True)
class Comparison:
    """A comparison, finished or not.

    Attributes:
        dataset: by name.
        pairs: in the order of the recipe; each has the same rows.
        baseline: the line that the others are compared with; None is the best that is not HKD.
        protocol: sentences about how it was trained and where.
        failed: folders of the runs that diverged.
    """

    dataset: str
    pairs: tuple[Pair, ...]
    baseline: str | None = None
    protocol: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def headline(self) -> str | None:
        """The form of HKD that ARI is of: the first HKD+KD, or else the first HKD, the paper's before the variant."""
        ours = [row for row in self.pairs[0].rows if row.is_ours]
        ours.sort(key=lambda row: (row.method.removesuffix(PLUS_KD) != OURS[0], row.method in OURS))
        return ours[0].label if ours else None

    def ari(self, over: str) -> float | None:
        """The average relative improvement of the headline over a line: the mean of
        :meth:`Pair.relative_improvement` over all pairs, None where one of them has none."""
        terms = [self._improvement(pair, over) for pair in self.pairs]
        known = [term for term in terms if term is not None]
        return statistics.fmean(known) if len(known) == len(terms) else None

    def _improvement(self, pair: Pair, over: str) -> float | None:
        if self.headline is None or over == self.headline:
            return None
        return pair.relative_improvement(self.headline, over)

    def numbers(self) -> dict[str, Any]:
        """Everything as plain data: the content of ``comparison.json``, of which the tables are made."""
        return {
            "dataset": self.dataset,
            "protocol": list(self.protocol),
            "headline": self.headline,
            "baseline": self.baseline,
            "ari": {row.label: self.ari(row.label) for row in self.pairs[0].rows},
            "pairs": [self._pair(pair) for pair in self.pairs],
        }

    def _pair(self, pair: Pair) -> dict[str, Any]:
        base = pair.baseline(self.baseline)
        return {
            "teacher": pair.teacher,
            "student": pair.student,
            "teacher_top1": pair.teacher_top1,
            "baseline": None if base is None else base.label,
            "methods": [self._row(pair, row, base) for row in pair.rows],
        }

    def _row(self, pair: Pair, row: Row, base: Row | None) -> dict[str, Any]:
        gain = None if base is None else row.against(base)
        by_seed = None if base is None else row.against_by_seed(base)
        numbers = ("top1_last", "top1_best", "best_epoch", "seconds", "images_per_second")
        return {
            "method": row.label,
            "seeds": list(row.summaries),
            **{name: row.values(name) for name in numbers},
            "teacher_read": read_share(row.summaries.values()),
            "ari": self._improvement(pair, row.label),
            "difference": None if gain is None else gain._asdict(),
            "difference_seeds": None if by_seed is None else by_seed._asdict(),
            "published": None if row.spec is None else published(pair.teacher, row.spec),
            "note": row.note,
            "runs": [str(run.path) for run in row.runs.values()],
        }
