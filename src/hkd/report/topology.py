"""The command ``hkd topology``: computes the numbers, writes their tables and draws the panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from hkd.analysis.topology import compute_topology
from hkd.analysis.trials import by_key
from hkd.config import TopologyConfig
from hkd.outside import check_installed
from hkd.report.tables import print_repetitions, spread, write_numbers
from hkd.trained import with_teachers

MEASURES = {
    "knn_overlap": "kNN overlap",
    "linear_cka": "linear CKA",
    "trustworthiness": "trustworthiness",
    "distance_correlation_squared": "distance correlation² (bias-corrected)",
}
"""The numbers of a row, with the heads of their columns."""


def topology(config: TopologyConfig) -> dict[str, Any]:
    """Compares students' embeddings of test images with their teacher's.

    Writes ``topology.md``, ``.csv``, ``.json``, ``.png``, ``.svg`` and an interactive ``.html`` into ``config.run``.
    See :func:`hkd.analysis.topology.compute_topology`.

    Returns:
        The content of ``topology.json``.
    """
    check_installed("topology", "report", "matplotlib", "plotly")
    from hkd.report.panels import draw

    config.check()
    result = compute_topology(config, with_teachers(config.checkpoints))
    folder, rows = Path(config.run), result.numbers["rows"]
    print_repetitions(rows)
    draw(result.panels, result.label, result.classes, folder)
    write_numbers(folder, "topology", result.numbers, rows, markdown(result.numbers))
    return result.numbers


def markdown(numbers: dict[str, Any]) -> str:
    """A row for each experiment, with the mean over its seeds."""
    lines = [
        [trials.label, *(spread(trials.values(name), 3) for name in MEASURES)] for trials in by_key(numbers["rows"])
    ]
    table = tabulate(lines, [f"student of {numbers['teacher']}", *MEASURES.values()], "github", disable_numparse=True)
    k, images = numbers["neighbours"], numbers["images"]
    return "\n\n".join(
        [
            "# Topology",
            f"{images:,} test images of {numbers['dataset']}; embeddings that enter the classifier.",
            table,
            "How much of the teacher's geometry a student keeps, 1 for all, mean ± standard deviation (n networks). "
            f"kNN overlap and trustworthiness are of the {k} nearest neighbours by cosine. By chance, unrelated "
            f"embeddings overlap by {k / (images - 1):.3f}, and their distance correlation² is about 0 (it may be "
            "negative).\n",
        ]
    )
