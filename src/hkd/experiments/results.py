"""What a comparison found, from run folders alone: the numbers, and the same as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from hkd.config import PLUS_KD
from hkd.experiments.bootstrap import Interval, paired_bootstrap
from hkd.experiments.published import CRD, HKD, published
from hkd.training.run_folder import RunFolder

OURS = "hkd"
"""The method that is no baseline, in whatever form."""


@dataclass(frozen=True)
class Row:
    """One method between one teacher and one student.

    Attributes:
        label: the line of the recipe.
        method: the method without settings, "ce", "hkd" or "hkd+kd".
        runs: the folders of its trials by seed.
        note: why there is nothing to show, where there is not.
    """

    label: str
    method: str
    runs: dict[int, RunFolder]
    note: str = ""

    def summaries(self) -> dict[int, dict[str, Any]]:
        """The results of the finished trials by seed."""
        found = {seed: run.summary for seed, run in self.runs.items()}
        return {seed: summary for seed, summary in found.items() if summary is not None}

    def values(self, name: str) -> list[float]:
        """One number of each finished trial."""
        return [summary[name] for summary in self.summaries().values()]

    @property
    def is_ours(self) -> bool:
        """Whether it is a form of HKD."""
        return self.method.removesuffix(PLUS_KD) == OURS

    @property
    def mean(self) -> float | None:
        """The mean accuracy of the last epoch in percent."""
        values = self.values("top1_last")
        return statistics.fmean(values) if values else None

    def against(self, other: Row) -> Interval | None:
        """How much better it is, over the trials that both have finished."""
        seeds = sorted(self.summaries().keys() & other.summaries().keys())
        if not seeds or self.label == other.label:
            return None
        ours, theirs = (np.stack([_right(row.runs[seed]) for seed in seeds]) for row in (self, other))
        return paired_bootstrap(ours, theirs)


def _right(run: RunFolder) -> np.ndarray:
    predicted, label = run.predictions()
    return np.asarray(predicted == label)


@dataclass(frozen=True)
class Pair:
    """All methods between one teacher and one student."""

    teacher: str
    student: str
    rows: tuple[Row, ...]

    def __getitem__(self, label: str) -> Row | None:
        return next((row for row in self.rows if row.label == label), None)

    @property
    def teacher_top1(self) -> float | None:
        """Of the network that taught: as the students' runs measured it."""
        for row in self.rows:
            for summary in row.summaries().values():
                if "teacher_top1" in summary:
                    return float(summary["teacher_top1"])
        return None

    def best_baseline(self, named: str | None) -> Row | None:
        """The row that others are compared with: the one named, or the best that is not HKD."""
        if named is not None:
            return self[named]
        baselines = [row for row in self.rows if row.mean is not None and not row.is_ours]
        return max(baselines, key=lambda row: row.mean or 0.0, default=None)

    def relative_improvement(self, label: str, over: str) -> float | None:
        r"""What the paper's ARI averages over pairs, in percent, for one pair.

        .. math:: \frac{a_{\text{label}} - a_{\text{over}}}{a_{\text{over}} - a_{\text{student alone}}} \cdot 100

        None where a mean is missing, or where the method compared with does not improve on the student alone: relative
        to no improvement there is none.
        """
        best, other, alone = (
            row.mean if row is not None else None for row in map(self.__getitem__, (label, over, "ce"))
        )
        if best is None or other is None or alone is None or other <= alone:
            return None
        return (best - other) / (other - alone) * 100


@dataclass(frozen=True)
class Comparison:
    """A comparison as far as it has come.

    Attributes:
        dataset: by name.
        pairs: in the order of the recipe.
        baseline: the method that the others are compared with; None is the best that is not HKD.
        protocol: lines about how it was trained and where.
        failed: folders of the runs that diverged.
    """

    dataset: str
    pairs: tuple[Pair, ...]
    baseline: str | None
    protocol: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def headline(self) -> str | None:
        """The form of HKD whose improvement ARI tells: the first HKD+KD, or else the first HKD."""
        ours = [row for row in self.pairs[0].rows if row.is_ours]
        ours.sort(key=lambda row: row.method == OURS)  # stable: those without +kd behind
        return ours[0].label if ours else None

    def average_relative_improvement(self, over: str) -> float | None:
        """ARI: the mean of :meth:`Pair.relative_improvement` over the pairs. None where a pair has none."""
        if self.headline is None:
            return None
        found = [pair.relative_improvement(self.headline, over) for pair in self.pairs]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None

    def numbers(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "dataset": self.dataset,
            "protocol": list(self.protocol),
            "pairs": [self._pair_numbers(pair) for pair in self.pairs],
            "ari": {row.label: self.average_relative_improvement(row.label) for row in self.pairs[0].rows},
        }

    def _pair_numbers(self, pair: Pair) -> dict[str, Any]:
        base = pair.best_baseline(self.baseline)
        return {
            "teacher": pair.teacher,
            "student": pair.student,
            "teacher_top1": pair.teacher_top1,
            "baseline": base.label if base is not None else None,
            "methods": [self._row_numbers(pair, row, base) for row in pair.rows],
        }

    def _row_numbers(self, pair: Pair, row: Row, base: Row | None) -> dict[str, Any]:
        gain = row.against(base) if base is not None else None
        return {
            "method": row.label,
            "seeds": list(row.summaries()),
            "top1_last": row.values("top1_last"),
            "top1_best": row.values("top1_best"),
            "best_epoch": row.values("best_epoch"),
            "seconds": row.values("seconds"),
            "images_per_second": row.values("images_per_second"),
            "ari": pair.relative_improvement(self.headline, row.label) if self.headline else None,
            "difference": gain._asdict() if gain is not None else None,
            "published": published(self.dataset, pair.teacher, pair.student, row.label),
            "runs": {seed: str(run.path) for seed, run in row.runs.items()},
            "note": row.note,
        }

    def csv(self) -> str:
        """A line for each method and pair, with means, deviations and counts."""
        rows = []
        for pair in self.numbers()["pairs"]:
            for found in pair["methods"]:
                gain = found["difference"] or {}
                rows.append(
                    {
                        "teacher": pair["teacher"],
                        "student": pair["student"],
                        "method": found["method"],
                        "n": len(found["seeds"]),
                        **_mean_and_deviation("top1_last", found["top1_last"]),
                        **_mean_and_deviation("top1_best", found["top1_best"]),
                        "ari": found["ari"],
                        "baseline": pair["baseline"],
                        **{f"difference_{end}": gain.get(end) for end in ("mean", "low", "high")},
                        **_mean_and_deviation("seconds", found["seconds"]),
                        **_mean_and_deviation("images_per_second", found["images_per_second"]),
                        "published": found["published"],
                        "note": found["note"],
                    }
                )
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def markdown(self) -> str:
        """The tables with what it takes to read them."""
        parts = ["# Comparison", "\n".join(f"- {line}" for line in self.protocol)]
        for pair, found in zip(self.pairs, self.numbers()["pairs"], strict=True):
            taught = f"teacher {pair.teacher_top1:.2f}" if pair.teacher_top1 is not None else "teacher not yet measured"
            parts.append(f"## {pair.teacher} → {pair.student} ({taught})")
            parts.append(self.table(found, "github"))
        if len(self.pairs) > 1:
            parts += ["## All pairs", self._overview()]
        return "\n\n".join([*parts, self._legend()]) + "\n"

    def table(self, found: dict[str, Any], style: str = "simple") -> str:
        """One pair's table, as text."""
        base = found["baseline"]
        columns = ["method", "top-1, last epoch", "best epoch", "ARI", f"minus {base}" if base else "difference"]
        columns += ["min", "images/s"]
        told = any(row["published"] for row in found["methods"])
        lines = []
        for row in found["methods"]:
            line = [row["method"], spread(row["top1_last"]) if row["top1_last"] else row["note"] or "…"]
            line += [spread(row["top1_best"]), "" if row["ari"] is None else f"{row['ari']:.0f} %"]
            line += ["baseline" if row["method"] == base else _interval(row["difference"])]
            line += [f"{statistics.fmean(row['seconds']) / 60:.1f}" if row["seconds"] else ""]
            line += [f"{statistics.fmean(row['images_per_second']):,.0f}" if row["images_per_second"] else ""]
            lines.append([*line, row["published"] or ""] if told else line)
        return tabulate(lines, [*columns, "published"] if told else columns, style, disable_numparse=True)

    def _overview(self) -> str:
        headers = ["method", *(f"{pair.teacher} → {pair.student}" for pair in self.pairs), "ARI"]
        lines = []
        for row in self.pairs[0].rows:
            ari = self.average_relative_improvement(row.label)
            means = [spread(own.values("top1_last")) for pair in self.pairs if (own := pair[row.label]) is not None]
            lines.append([row.label, *means, "" if ari is None else f"{ari:.2f} %"])
        return tabulate(lines, headers, "github", disable_numparse=True)

    def _legend(self) -> str:
        lines = [
            "Accuracies are of the test split in percent, mean ± standard deviation (n trials). The last epoch is the "
            "result; the best epoch was chosen on the test split and flatters.",
            "*minus …*: the difference to the baseline in points with its 95 % interval, a paired bootstrap over "
            "trials and test images. **Bold** where the interval is on one side of 0; elsewhere the data do not decide."
            " The best baseline was chosen after the fact, so the true difference to it is if anything larger.",
        ]
        if self.headline is not None:
            lines.append(
                f"*ARI*: how much more {self.headline} improves on the student alone than the method does, relative to "
                "the method's own improvement; empty where the method does not improve on the student alone."
            )
        if self.dataset == "cifar100":
            lines.append(f"*published*: [1] {HKD}; [2] {CRD}.")
        return "\n\n".join(lines)


def spread(values: list[float]) -> str:
    """66.17 ± 0.67 (3): mean, standard deviation, count."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation} ({len(values)})"


def _interval(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    text = f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"**{text}**" if Interval(**found).decides else text


def _mean_and_deviation(name: str, values: list[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": statistics.fmean(values) if values else None,
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def write(comparison: Comparison, folder: Path, numbers: str) -> None:
    """Writes the tables; ``numbers`` is the JSON text."""
    for name, text in (
        ("comparison.md", comparison.markdown()),
        ("comparison.csv", comparison.csv()),
        ("comparison.json", numbers),
    ):
        partial = folder / f"{name}.partial"
        partial.write_text(text)
        partial.replace(folder / name)
