"""The tables of docs/results.md that are made of the numbers beside it.

    python -m benchmarks.tables docs/results.md

writes each table anew that stands below a line ``<!-- results/NAME.json | METHOD | ... -->``, from the files that
``benchmarks.collect`` keeps. Of a comparison it has the accuracies in NAME.json, and the difference to each METHOD by
the predictions in NAME.npz; of ``hkd topology`` and ``hkd transfer`` what was measured of each network, and the first
METHOD less each other; of a search its best tries.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from hkd.analysis.bootstrap import paired_bootstrap, paired_t
from hkd.analysis.trials import Row, by_key
from hkd.report.sweeps import ranked_tries, short
from hkd.report.tables import ends, spread
from hkd.report.topology import MEASURES

TABLE = re.compile(r"<!-- (results/[\w.-]+)\.json((?: \| [^|\n]+?)*) -->\n(?:\|.*\n)*")


def written(text: str, folder: Path) -> str:
    """A document with all its tables made anew; ``folder`` is its own."""
    return TABLE.sub(lambda found: found[0].split("\n")[0] + "\n" + _table(folder / found[1], found[2]), text)


def _table(study: Path, named: str) -> str:
    numbers = json.loads(study.with_suffix(".json").read_text())
    names = [name.strip() for name in named.split("|")[1:]]
    if "pairs" in numbers:
        return _accuracies(study, numbers, names)
    return _measures(numbers, names) if "rows" in numbers else _tries(numbers)


def _accuracies(study: Path, numbers: dict[str, Any], bases: list[str]) -> str:
    with np.load(study.with_suffix(".npz")) as arrays:
        correct = {name: arrays[name] == arrays["label"] for name in arrays.files if name != "label"}
    lines = []
    for pair in numbers["pairs"]:
        rows = {row["method"]: row for row in pair["methods"] if row["seeds"]}  # what no run has finished is no line
        for name, row in rows.items():
            seeds = " ".join(f"{value:.2f}" for value in row["top1_last"])
            lines.append([f"`{name}`", seeds, spread(row["top1_last"]), *(_gain(row, rows[b], correct) for b in bases)])
    heads = ["method", "each seed", "top-1, last epoch", *(f"minus `{base}`" for base in bases)]
    return tabulate(lines, heads, "github", disable_numparse=True) + "\n"


def _measures(numbers: dict[str, Any], names: list[str]) -> str:
    """A line for each thing that was measured, with the differences from the seeds that both networks have."""
    of = {trials.label.split(", ", 1)[-1]: trials.rows for trials in by_key(numbers["rows"])}
    if "datasets" in numbers:
        measured = {f"probe of {name}, top-1": (2, _probes(of, name)) for name in numbers["datasets"]}
    else:
        measured = {head: (3, _by_seed(of, name)) for name, head in MEASURES.items()}
    lines = []
    for head, (digits, values) in measured.items():
        means = [spread(list(seeds.values()), digits) for seeds in values.values()]
        lines.append([head, *means, *(_step(values[names[0]], values[base], digits) for base in names[1:])])
    steps = (f"`{names[0]}` minus `{base}`" for base in names[1:])
    return tabulate(lines, ["", *(f"`{name}`" for name in of), *steps], "github", disable_numparse=True) + "\n"


def _by_seed(of: dict[str, list[Row]], name: str) -> dict[str, dict[int, float]]:
    return {label: {row["seed"]: row[name] for row in rows} for label, rows in of.items()}


def _probes(of: dict[str, list[Row]], dataset: str) -> dict[str, dict[int, float]]:
    return _by_seed({label: [row for row in rows if row["dataset"] == dataset] for label, rows in of.items()}, "top1")


def _step(of: dict[int, float], base: dict[int, float], digits: int) -> str:
    seeds = sorted(of.keys() & base.keys())
    alone = paired_t([of[seed] for seed in seeds], [base[seed] for seed in seeds])
    if alone is None:
        return ""
    text = f"{alone.mean:+.{digits}f} [{alone.low:+.{digits}f}, {alone.high:+.{digits}f}]"
    return f"**{text}**" if alone.excludes_zero else text


BEST = 8
"""How many tries of a search its table shows."""


def _tries(numbers: dict[str, Any]) -> str:
    names, tries = ranked_tries(numbers)
    lines = [
        [row["try"], *(short(row["values"].get(name)) for name in names), f"{row['top1_holdout']:.2f}"]
        for row in tries
        if row["state"] == "complete"
    ]
    heads = ["try", *(f"`{name.split('.')[-1]}`" for name in names), "top-1, held out"]
    return tabulate(lines[:BEST], heads, "github", disable_numparse=True) + "\n"


def _gain(row: dict[str, Any], base: dict[str, Any], correct: dict[str, np.ndarray]) -> str:
    """Mean difference over the seeds that both have, its interval, and that from the seeds alone in parentheses."""
    seeds = [seed for seed in row["seeds"] if seed in base["seeds"]]
    if row is base or not seeds:
        return ""
    gain = paired_bootstrap(*(np.stack([correct[run] for run in _of(line, seeds, "runs")]) for line in (row, base)))
    alone = paired_t(*(_of(line, seeds, "top1_last") for line in (row, base)))
    text = f"{gain.mean:+.2f} {ends(gain._asdict())}"
    words = f"**{text}**" if gain.excludes_zero and len(seeds) > 1 else text
    return words if alone is None else f"{words} ({ends(alone._asdict())})"


def _of(line: dict[str, Any], seeds: list[int], name: str) -> list[Any]:
    """One of a line's lists, of these seeds."""
    return [line[name][line["seeds"].index(seed)] for seed in seeds]


def main() -> None:
    for name in sys.argv[1:]:
        file = Path(name)
        file.write_text(written(file.read_text(), file.parent))


if __name__ == "__main__":
    main()
