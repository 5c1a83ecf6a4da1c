"""A comparison's numbers as Markdown, CSV and plain text."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

from tabulate import tabulate

from hkd.analysis.bootstrap import Interval
from hkd.files import write_text
from hkd.report.published import CRD, HKD

Numbers = dict[str, Any]
"""What :meth:`hkd.report.results.Comparison.numbers` returns, or a part of it."""


def write(numbers: Numbers, folder: Path) -> None:
    """Rewrites ``comparison.md``, ``.csv`` and ``.json``, each as a whole or not at all."""
    write_numbers(folder, "comparison", numbers, _csv_rows(numbers), markdown(numbers))


def write_numbers(folder: Path, name: str, numbers: Numbers, rows: list[Numbers], text: str) -> None:
    """Writes ``name.json``, its rows as ``name.csv``, and ``name.md``."""
    whole = json.dumps(numbers, indent=2) + "\n"
    write_whole(folder, {f"{name}.md": text, f"{name}.csv": csv_text(rows), f"{name}.json": whole})


def csv_text(rows: list[Numbers]) -> str:
    """Rows of the same names as CSV, with a line of the names; empty without rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A number as float32 holds it, without the digits that only its binary form has."""
    return f"{value:.7g}" if isinstance(value, float) else value


def write_whole(folder: Path, texts: dict[str, str]) -> None:
    """Writes files, each as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def pair_table(pair: Numbers, style: str = "simple") -> str:
    """The methods between one teacher and one student."""
    base = pair["baseline"]
    headers = ["method", "top-1, last epoch", "best epoch", "ARI", f"minus {base}" if base else "difference"]
    headers += ["minutes", "images/s"]
    told = any(row["published"] for row in pair["methods"])
    lines = []
    for row in pair["methods"]:
        line = [
            row["method"],
            _told(row) or "…",
            spread(row["top1_best"]),
            "" if row["ari"] is None else f"{row['ari']:.0f} %",
            "baseline" if row["method"] == base else _interval(row),
            f"{statistics.fmean(row['seconds']) / 60:.1f}" if row["seconds"] else "",
            f"{statistics.fmean(row['images_per_second']):,.0f}" if row["images_per_second"] else "",
        ]
        lines.append([*line, row["published"] or ""] if told else line)
    return tabulate(lines, [*headers, "published"] if told else headers, style, disable_numparse=True)


def overview(numbers: Numbers, style: str = "github") -> str:
    """All pairs beside one another, with ARI over them."""
    pairs = numbers["pairs"]
    headers = ["method", *(f"{pair['teacher']} → {pair['student']}" for pair in pairs), "ARI"]
    lines = []
    for rows in zip(*(pair["methods"] for pair in pairs), strict=True):
        label = rows[0]["method"]
        ari = numbers["ari"][label]
        cells = [_told(row) for row in rows]
        lines.append([label, *cells, "" if ari is None else f"{ari:.2f} %"])
    return tabulate(lines, headers, style, disable_numparse=True)


def markdown(numbers: Numbers) -> str:
    """All tables, with what it takes to read them."""
    parts = ["# Comparison", "\n".join(f"- {line}" for line in numbers["protocol"])]
    for pair in numbers["pairs"]:
        top1 = pair["teacher_top1"]
        taught = "" if top1 is None else f" (teacher {top1:.2f})"
        parts += [f"## {pair['teacher']} → {pair['student']}{taught}", pair_table(pair, "github")]
    if len(numbers["pairs"]) > 1:
        parts += ["## All pairs", overview(numbers)]
    return "\n\n".join([*parts, *_legend(numbers)]) + "\n"


def _legend(numbers: Numbers) -> list[str]:
    lines = [
        "Accuracies are of the test split in percent, mean ± standard deviation (n trials). The last epoch is the "
        "result; the best epoch was chosen on the test split and flatters.",
        "*minus …*: the difference to that line in points with its 95 % interval, a paired bootstrap over trials and "
        "test images. **Bold** where the interval lies on one side of 0; elsewhere the data do not decide. Few trials "
        "say little about other seeds, one says nothing (and nothing is bold then); of many lines, one in twenty would "
        "be bold by chance.",
    ]
    if numbers["baseline"] is None:
        lines.append(
            "The line compared with is the best that is not HKD. It was chosen by these numbers, which favours it."
        )
    if numbers["headline"] is not None:
        lines.append(
            f"*ARI*: by how much more {numbers['headline']} improves on the student alone than the method does, "
            "relative to the method's own improvement; empty where the method does not improve on the student alone."
        )
    if numbers["dataset"] == "cifar100":
        lines.append(f"*published*: [1] {HKD}; [2] {CRD}.")
    return lines


def as_csv(numbers: Numbers) -> str:
    """A line for each method and pair: means, deviations, counts."""
    return csv_text(_csv_rows(numbers))


def _csv_rows(numbers: Numbers) -> list[Numbers]:
    return [_csv_row(pair, found) for pair in numbers["pairs"] for found in pair["methods"]]


def _csv_row(pair: Numbers, found: Numbers) -> Numbers:
    row = {"teacher": pair["teacher"], "student": pair["student"], "method": found["method"], "n": len(found["seeds"])}
    for name in ("top1_last", "top1_best", "seconds", "images_per_second"):
        values = found[name]
        row[f"{name}_mean"] = statistics.fmean(values) if values else None
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    row |= {"ari": found["ari"], "baseline": pair["baseline"]}
    gain = found["difference"] or {}
    row |= {f"difference_{end}": gain.get(end) for end in ("mean", "low", "high")}
    return row | {"published": found["published"], "note": found["note"]}


def spread(values: list[float], digits: int = 2) -> str:
    """66.17 ± 0.67 (3): mean, standard deviation, count."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation} ({len(values)})"


def _told(row: Numbers) -> str:
    """A line's accuracy, and what there is to say of it: runs that diverged stand beside those that did not."""
    return ", ".join(part for part in (spread(row["top1_last"]), row["note"]) if part)


def _interval(row: Numbers) -> str:
    if row["difference"] is None:
        return ""
    found = Interval(**row["difference"])
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.excludes_zero and len(row["seeds"]) > 1 else text
