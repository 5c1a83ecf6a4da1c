"""A comparison's numbers as Markdown, LaTeX, CSV and plain text."""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from hkd.analysis.bootstrap import Interval
from hkd.analysis.trials import Row, repetition_notes
from hkd.files import write_text
from hkd.report import latex, outputs
from hkd.report.published import CRD, HKD

Numbers = dict[str, Any]
"""What :meth:`hkd.report.results.Comparison.numbers` returns, or a part of it."""


def write(numbers: Numbers, folder: Path) -> None:
    """Rewrites ``comparison.md``, ``.tex``, ``.csv`` and ``.json``, each as a whole or not at all."""
    write_numbers(folder, "comparison", numbers, _csv_rows(numbers), markdown(numbers))
    write_whole(folder, {"comparison.tex": as_latex(numbers)})


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
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """A value as a CSV file holds it.

    Numbers have six digits, those that a float32 keeps. A text that a spreadsheet would take for a formula has an
    apostrophe in front (OWASP, "CSV Injection").
    """
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


FORMULA = ("=", "+", "-", "@")


def write_whole(folder: Path, texts: dict[str, str]) -> None:
    """Writes files, each as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def pair_table(pair: Numbers, style: str = "simple") -> str:
    """The methods between one teacher and one student."""
    headers, lines = _pair_cells(pair)
    return tabulate(lines, headers, style, disable_numparse=True)


def _pair_cells(pair: Numbers) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, and the lines."""
    base = pair["baseline"]
    headers = ["method", "top-1, last epoch", "best epoch", "ARI", f"minus {base}" if base else "difference"]
    headers += ["seeds alone", "minutes", "images/s"]
    has_table = any(row["teacher_read"] is not None for row in pair["methods"])
    headers += [outputs.HEAD] if has_table else []
    has_published = any(row["published"] for row in pair["methods"])
    lines = []
    for row in pair["methods"]:
        line = [
            row["method"],
            _accuracy(row) or "…",
            spread(row["top1_best"]),
            "" if row["ari"] is None else f"{row['ari']:.0f} %",
            "baseline" if row["method"] == base else _interval(row),
            ends(row["difference_seeds"]),
            f"{statistics.fmean(row['seconds']) / 60:.1f}" if row["seconds"] else "",
            f"{statistics.fmean(row['images_per_second']):,.0f}" if row["images_per_second"] else "",
            *([outputs.in_words(row["teacher_read"], distils=row["method"] != "ce")] if has_table else []),
        ]
        lines.append([*line, row["published"] or ""] if has_published else line)
    return [*headers, "published"] if has_published else headers, lines


def overview(numbers: Numbers, style: str = "github") -> str:
    """All pairs beside one another, with ARI over them."""
    headers, lines = _overview_cells(numbers)
    return tabulate(lines, headers, style, disable_numparse=True)


def _overview_cells(numbers: Numbers) -> tuple[list[str], list[list[str]]]:
    pairs = numbers["pairs"]
    headers = ["method", *(f"{pair['teacher']} → {pair['student']}" for pair in pairs), "ARI"]
    lines = []
    for rows in zip(*(pair["methods"] for pair in pairs), strict=True):
        label = rows[0]["method"]
        ari = numbers["ari"][label]
        cells = [_accuracy(row) for row in rows]
        lines.append([label, *cells, "" if ari is None else f"{ari:.2f} %"])
    return headers, lines


def markdown(numbers: Numbers) -> str:
    """All tables, with the protocol and a legend."""
    parts = ["# Comparison", "\n".join(f"- {line}" for line in numbers["protocol"])]
    for pair in numbers["pairs"]:
        top1 = pair["teacher_top1"]
        of_teacher = "" if top1 is None else f" (teacher {top1:.2f})"
        parts += [f"## {pair['teacher']} → {pair['student']}{of_teacher}", pair_table(pair, "github")]
    if len(numbers["pairs"]) > 1:
        parts += ["## All pairs", overview(numbers)]
    return "\n\n".join([*parts, *_legend(numbers)]) + "\n"


def as_latex(numbers: Numbers) -> str:
    """All tables for a paper, with the protocol and the legend as remarks."""
    made = [latex.tabular(*_pair_cells(pair), f"{pair['teacher']} → {pair['student']}") for pair in numbers["pairs"]]
    if len(made) > 1:
        made.append(latex.tabular(*_overview_cells(numbers), "All pairs"))
    return latex.document(made, [*numbers["protocol"], *_legend(numbers)])


def _legend(numbers: Numbers) -> list[str]:
    lines = [
        "Accuracies are of the test split in percent, mean ± standard deviation (n trials). The last epoch is the "
        "result; the best epoch was chosen on the test split and is biased upwards.",
        "*minus …*: the difference to that line in points with its 95 % interval, a paired bootstrap over trials and "
        "test images. **Bold** where the interval excludes 0; elsewhere the data do not decide. Few trials say little "
        "about other seeds, a single one nothing (and nothing is bold then); of many lines, one in twenty would be "
        "bold by chance.",
        "*seeds alone*: the 95 % interval of the same difference from a paired t over the trials, which takes the test "
        "images as given; empty for fewer than 2 trials.",
    ]
    if numbers["baseline"] is None:
        lines.append("The baseline is the best line that is not HKD. It was chosen by these numbers, which favours it.")
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
    return [_csv_row(pair, line) for pair in numbers["pairs"] for line in pair["methods"]]


def _csv_row(pair: Numbers, line: Numbers) -> Numbers:
    row = {"teacher": pair["teacher"], "student": pair["student"], "method": line["method"], "n": len(line["seeds"])}
    for name in ("top1_last", "top1_best", "seconds", "images_per_second"):
        values = line[name]
        row[f"{name}_mean"] = statistics.fmean(values) if values else None
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    row |= {"ari": line["ari"], "baseline": pair["baseline"]}
    for name in ("difference", "difference_seeds"):
        row |= {f"{name}_{end}": (line[name] or {}).get(end) for end in ("mean", "low", "high")}
    return row | {"published": line["published"], "note": line["note"]}


def spread(values: list[float], digits: int = 2) -> str:
    """66.17 ± 0.67 (3): mean, standard deviation, count."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation} ({len(values)})"


def print_repetitions(rows: Sequence[Row]) -> None:
    """Names the networks that tables do not count, on standard error."""
    for note in repetition_notes(rows):
        print(note, file=sys.stderr, flush=True)


def _accuracy(row: Numbers) -> str:
    """A line's accuracy, with its note if some of its runs have failed."""
    return ", ".join(part for part in (spread(row["top1_last"]), row["note"]) if part)


def ends(interval: Numbers | None) -> str:
    """The ends of an interval; empty for none."""
    return "" if interval is None else f"[{interval['low']:+.2f}, {interval['high']:+.2f}]"


def _interval(row: Numbers) -> str:
    if row["difference"] is None:
        return ""
    gain = Interval(**row["difference"])
    text = f"{gain.mean:+.2f} {ends(row['difference'])}"
    return f"**{text}**" if is_decided(row) else text


def is_decided(row: Numbers) -> bool:
    """Whether an interval excludes 0 and is of two trials at least, as that of the seeds alone is."""
    return row["difference_seeds"] is not None and Interval(**row["difference"]).excludes_zero
