"""The results of sweeps and searches as tables and plots."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from hkd.files import replacing_path
from hkd.outside import is_installed
from hkd.report.tables import Numbers, spread


def accuracies(numbers: Numbers, method: str, value: Any) -> list[float]:
    """The last-epoch accuracies of the trials of one method at one value."""
    field = numbers["field"]
    return [row["top1_last"] for row in numbers["points"] if row["method"] == method and row.get(field) == value]


def sweep_table(numbers: Numbers) -> str:
    """A row for each value, a column for each method."""
    lines = [
        [value, *(spread(accuracies(numbers, method, value)) for method in numbers["methods"])]
        for value in numbers["values"]
    ]
    table = tabulate(lines, [numbers["field"], *numbers["methods"]], "github", disable_numparse=True)
    legend = "Accuracy of the last epoch in percent, mean ± standard deviation (n trials)."
    return f"# {numbers['field']}\n\n{table}\n\n{legend}\n"


def draw_sweep(numbers: Numbers, folder: Path) -> None:
    """Writes a line for each method with error bars of one standard deviation, as ``sweep.png`` and ``.svg``.

    Without Matplotlib it only says so: the tables are there, and the same sweep is drawn once it is installed.
    """
    if not is_installed("matplotlib"):
        print("sweep.png, .svg are not drawn: matplotlib is not installed; pip install 'hkd[report]'", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    positions = range(len(numbers["values"]))
    for n, method in enumerate(numbers["methods"]):
        offset = 0.02 * (n - (len(numbers["methods"]) - 1) / 2)  # so that error bars do not overlap
        values_at = zip(positions, numbers["values"], strict=True)
        points = {x + offset: accuracies(numbers, method, value) for x, value in values_at}
        known = {x: values for x, values in points.items() if values}
        bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known.values()]
        axes.errorbar(list(known), [*map(statistics.fmean, known.values())], bars, marker="o", capsize=3, label=method)
    axes.set_xticks(list(positions), [str(value) for value in numbers["values"]])
    axes.set(xlabel=numbers["field"], ylabel="top-1, last epoch (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd")
    axes.legend(frameon=False)
    for suffix in ("png", "svg"):
        with replacing_path(folder / f"sweep.{suffix}") as file:
            figure.savefig(file, dpi=160)


def ranked_tries(numbers: Numbers) -> tuple[list[str], list[Numbers]]:
    """The names of the fields that a search varied, and its tries, the best first."""
    tries = sorted(numbers["tries"], key=lambda row: -(row.get("top1_holdout") or 0.0))
    return list(dict.fromkeys(name for row in tries for name in row["values"])), tries


def search_table(numbers: Numbers) -> str:
    """The tries, the best first, and the settings of the best."""
    names, tries = ranked_tries(numbers)
    lines = [
        [row["try"], *(short(row["values"].get(name)) for name in names), short(row["top1_holdout"]), row["state"]]
        for row in tries
    ]
    table = tabulate(lines, ["try", *names, "top-1, held out", "state"], "github", disable_numparse=True)
    best = numbers["best"]
    words = "No try has finished."
    if best is not None:
        words = ", ".join(f"{name} = {short(value)}" for name, value in best["values"].items())
        words = f"Best: {words}, with {best['top1_holdout']:.2f} % of the held-out training images."
    legend = "The test split was not opened. The best of several tries is biased upwards and is no result."
    return f"# Search, {numbers['method']}\n\n{words}\n\n{table}\n\n{legend}\n"


def short(value: Any) -> str:
    """A value of a field with at most four digits; empty for none."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
