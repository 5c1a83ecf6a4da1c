"""The tables of docs/results.md that are made of the numbers beside it.

    python -m benchmarks.tables docs/results.md

writes each table anew that stands below a line ``<!-- results/NAME.json | METHOD | ... -->``: accuracies of NAME.json,
and the difference to each METHOD by the predictions in NAME.npz. Both files are what ``benchmarks.collect`` keeps.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from hkd.analysis.bootstrap import paired_bootstrap, paired_t
from hkd.report.tables import ends, spread

TABLE = re.compile(r"<!-- (results/[\w.-]+)\.json((?: \| [^|\n]+?)*) -->\n(?:\|.*\n)*")


def written(text: str, folder: Path) -> str:
    """A document with all its tables made anew; ``folder`` is its own."""
    return TABLE.sub(lambda found: found[0].split("\n")[0] + "\n" + _table(folder / found[1], found[2]), text)


def _table(study: Path, named: str) -> str:
    numbers = json.loads(study.with_suffix(".json").read_text())
    bases = [name.strip() for name in named.split("|")[1:]]
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
