"""How alike a teacher and its students place test images: panels side by side, and numbers for what the eye sees."""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate

from hkd.analysis.features import Features, extract
from hkd.analysis.geometry import aligned, distance_correlation, knn_overlap, linear_cka, trustworthiness
from hkd.config import EvaluateConfig, TopologyConfig
from hkd.errors import RequestError
from hkd.holistic import knn_graph
from hkd.jobs import Trained, open_test
from hkd.report.labels import label_of, with_teachers
from hkd.report.tables import spread, write_numbers
from hkd.runtime.engine import Engine

Points = NDArray[np.floating[Any]]


NUMBERS = {
    "knn_overlap": "kNN overlap",
    "linear_cka": "linear CKA",
    "trustworthiness": "trustworthiness",
    "distance_correlation": "distance correlation",
}
"""What is told of each student, and the heads of its columns."""


@dataclass(frozen=True)
class Panel:
    """One network's test images in the plane.

    Attributes:
        title: the network.
        points: (N, 2).
        edges: (N, k) the batch graph's neighbours of each image, itself first; None where they are not wanted.
    """

    title: str
    points: Points
    edges: NDArray[np.int64] | None


def topology(config: TopologyConfig) -> dict[str, Any]:
    """Compares students' embeddings of test images with their teacher's.

    Writes ``topology.md``, ``.json``, ``.png``, ``.svg`` and an interactive ``.html`` into ``config.run``. All panels
    show the same images in the same colours; each is laid out by t-SNE from the same seed, then turned or mirrored to
    lie as near to the teacher's as it can, so that panels can be compared by eye. Numbers are taken from the
    embeddings, not from the panels.

    Returns:
        What stands in ``topology.json``.
    """
    config.check()
    networks = with_teachers(config.checkpoints)
    teacher, students = networks[0], networks[1:]
    if "method" in teacher.asked or not students:
        raise RequestError("checkpoints: name students with their teacher, or the teacher first")
    engine = Engine(config.device, config.precision, config.seed)
    folder = Path(config.run)
    seen = {found.weights: _features(config, found, teacher, engine, folder) for found in networks}
    reference = seen[teacher.weights]
    chosen = np.random.default_rng(config.seed).permutation(len(reference.label))[: config.images]
    chosen.sort()
    if config.neighbours >= len(chosen):
        raise RequestError(f"neighbours: expected fewer than the {len(chosen)} images; got {config.neighbours}")

    rows = []
    for found in students:
        print(f"{label_of(found)} ({found.weights.parent})", file=sys.stderr, flush=True)
        a, b = reference.embedding[chosen], seen[found.weights].embedding[chosen]
        rows.append(
            {
                "network": label_of(found),
                "weights": str(found.weights),
                "seed": found.asked.get("seed"),
                "knn_overlap": knn_overlap(a, b, config.neighbours),
                "linear_cka": linear_cka(a, b),
                "trustworthiness": trustworthiness(a, b, config.neighbours),
                "distance_correlation": distance_correlation(a, b),
            }
        )
    shown = {label_of(found): found for found in reversed(networks)}  # of runs that differ in seed the first
    panels = _panels(config, [(label, seen[found.weights]) for label, found in reversed(shown.items())], chosen)
    classes = list(teacher.about.get("classes") or range(int(reference.label.max()) + 1))
    draw(panels, reference.label[chosen], [str(name) for name in classes], folder)
    numbers = {
        "dataset": config.dataset or teacher.about.get("dataset"),
        "images": len(chosen),
        "neighbours": config.neighbours,
        "teacher": label_of(teacher),
        "rows": rows,
    }
    write_numbers(folder, "topology", numbers, rows, markdown(numbers))
    return numbers


def _features(config: TopologyConfig, found: Trained, teacher: Trained, engine: Engine, folder: Path) -> Features:
    """What a network sees in the test images that its teacher was tested on."""
    asked = EvaluateConfig(checkpoint=str(found.weights), dataset=config.dataset, data_root=config.data_root)
    data = open_test(asked, Trained(found.name, found.weights, found.about, found.asked or teacher.asked))
    return extract(found, data, engine, folder / "cache", config.batch_size)


def _panels(config: TopologyConfig, shown: Sequence[tuple[str, Features]], chosen: NDArray[np.intp]) -> list[Panel]:
    from sklearn.manifold import TSNE

    panels: list[Panel] = []
    for title, features in shown:
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        layout = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=config.seed)
        points = layout.fit_transform(features.embedding[chosen].astype(np.float64))
        points = points if not panels else aligned(points, panels[0].points)
        edges = knn_graph(torch.from_numpy(features.logits[chosen]), config.k).numpy() if config.edges else None
        panels.append(Panel(title, points, edges))
    return panels


def markdown(numbers: dict[str, Any]) -> str:
    """A row for each network, with the mean over its seeds."""
    labels = list(dict.fromkeys(row["network"] for row in numbers["rows"]))
    lines = [
        [label, *(spread([row[key] for row in numbers["rows"] if row["network"] == label], 3) for key in NUMBERS)]
        for label in labels
    ]
    table = tabulate(lines, [f"student of {numbers['teacher']}", *NUMBERS.values()], "github", disable_numparse=True)
    k, images = numbers["neighbours"], numbers["images"]
    return "\n\n".join(
        [
            "# Topology",
            f"{images:,} test images of {numbers['dataset']}; embeddings that enter the classifier.",
            table,
            "How much of the teacher's geometry a student keeps, 1 for all, mean ± standard deviation (n networks). "
            f"kNN overlap and trustworthiness are of the {k} nearest neighbours by cosine; unrelated embeddings "
            f"overlap by {k / (images - 1):.3f}.\n",
        ]
    )


def draw(panels: Sequence[Panel], label: NDArray[np.int64], classes: Sequence[str], folder: Path) -> None:
    """Writes the panels as ``topology.png``, ``.svg`` and an interactive ``.html``."""
    import matplotlib as mpl
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    colours = _colours(len(classes))
    height, width = _grid(len(panels))
    figure = Figure(figsize=(4 * width, 4.3 * height + 0.5), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True).flatten()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        if panel.edges is not None:
            lines = [(panel.points[i], panel.points[j]) for i, row in enumerate(panel.edges) for j in row[1:]]
            axes.add_collection(LineCollection(lines, colors="#88888826", linewidths=0.3, zorder=1))
        axes.scatter(*panel.points.T, c=[colours[n] for n in label], s=7, linewidths=0, zorder=2)
        axes.set_title(_wrapped(panel.title), fontsize=10)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("#cccccc")
    if len(classes) <= MOST_NAMED:
        marks = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colours[n]) for n in range(len(classes))]
        figure.legend(
            marks, classes, loc="outside lower center", ncols=min(len(classes), 3 * width), frameon=False, fontsize=8
        )
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"topology.{suffix}", dpi=160)
    (folder / "topology.html").write_text(interactive(panels, label, classes))


MOST_NAMED = 20
"""Classes in a legend; more cannot be told apart by colour."""


def _wrapped(title: str) -> str:
    """A title in lines of a panel's width."""
    return textwrap.fill(re.sub(r",\s*", ", ", title), 38, break_on_hyphens=False)


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns of so many panels, at most three side by side."""
    height = math.ceil(panels / 3)
    return height, math.ceil(panels / height)


def _colours(count: int) -> list[tuple[float, float, float]]:
    import matplotlib as mpl

    if count <= 20:
        return list(mpl.colormaps["tab10" if count <= 10 else "tab20"].colors)  # type: ignore[attr-defined]
    return [mpl.colormaps["gist_rainbow"](n / count)[:3] for n in range(count)]


def interactive(panels: Sequence[Panel], label: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The panels as a page that needs no network: pointing at an image names it, a click on a class hides it."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [_wrapped(panel.title).replace("\n", "<br>") for panel in panels]
    height, width = _grid(len(panels))
    figure = make_subplots(
        rows=height, cols=width, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.08
    )
    colours = [f"rgb({','.join(str(round(255 * part)) for part in colour[:3])})" for colour in _colours(len(classes))]
    for number, panel in enumerate(panels):
        row, column = 1 + number // width, 1 + number % width
        once = {"showlegend": number == 0}
        if panel.edges is not None:
            gap = np.full(2, np.nan)
            ends = [(panel.points[i], panel.points[j], gap) for i, row in enumerate(panel.edges) for j in row[1:]]
            x, y = np.concatenate(ends).T
            line = {"color": "rgba(136,136,136,.3)", "width": 0.5}
            graph = go.Scattergl(x=x, y=y, mode="lines", line=line, name="graph", legendgroup="graph", hoverinfo="skip")
            figure.add_trace(graph.update(once), row=row, col=column)
        for n, name in enumerate(classes):
            own = np.flatnonzero(label == n)
            x, y = panel.points[own].T
            dots = go.Scattergl(x=x, y=y, mode="markers", name=name, legendgroup=name, text=[f"image {i}" for i in own])
            dots.update(
                marker={"color": colours[n], "size": 5}, hovertemplate="%{text}, %{fullData.name}<extra></extra>"
            )
            figure.add_trace(dots.update(once), row=row, col=column)
        figure.update_xaxes(visible=False, matches="x", row=row, col=column)
        figure.update_yaxes(visible=False, matches="y", scaleanchor="x", row=row, col=column)
    figure.update_layout(template="plotly_white", margin={"l": 10, "r": 10, "t": 60, "b": 10}, height=480 * height + 70)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
