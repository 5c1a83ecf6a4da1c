"""The command ``hkd transfer``: computes the probes and writes their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from hkd.analysis.transfer import compute_transfer
from hkd.analysis.trials import by_key
from hkd.config import TransferConfig
from hkd.report.tables import print_repetitions, spread, write_numbers
from hkd.trained import with_teachers


def transfer(config: TransferConfig) -> dict[str, Any]:
    """Trains a probe for each network and data set and writes ``transfer.md``, ``.csv`` and ``.json``.

    See :func:`hkd.analysis.transfer.compute_transfer`.

    Returns:
        The content of ``transfer.json``.
    """
    config.check()
    numbers = compute_transfer(config, with_teachers(config.checkpoints))
    print_repetitions(numbers["rows"])
    write_numbers(Path(config.run), "transfer", numbers, numbers["rows"], markdown(numbers))
    return numbers


def markdown(numbers: dict[str, Any]) -> str:
    """A row for each experiment with the mean over its seeds, and a column for each data set."""
    lines = []
    for trials in by_key(numbers["rows"]):
        top1 = {name: [row["top1"] for row in trials.rows if row["dataset"] == name] for name in numbers["datasets"]}
        lines.append([trials.label, *map(spread, top1.values())])
    table = tabulate(lines, ["network", *numbers["datasets"]], "github", disable_numparse=True)
    protocol = "\n".join(f"- {line}" for line in numbers["protocol"])
    legend = "Accuracy of the linear probe on the test split in percent, mean ± standard deviation (n networks)."
    return f"# Transfer\n\n{protocol}\n\n{table}\n\n{legend}\n"
