"""Panels of test images in the plane, one a network: a figure by matplotlib and an interactive page by plotly."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from hkd.analysis.topology import Panel
from hkd.files import replacing_path, write_text

LARGEST_LEGEND = 20
"""Classes in a legend; the colours of more cannot be distinguished."""

Labels = NDArray[np.int64]
Colour = tuple[float, float, float]


def draw(panels: Sequence[Panel], label: Labels, classes: Sequence[str], folder: Path) -> None:
    """Writes the panels as ``topology.png``, ``.svg`` and an interactive ``.html``.

    Args:
        panels: of N images each.
        label: (N,) their classes.
        classes: names of the classes.
        folder: where to; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure = static(panels, label, classes)
    for suffix in ("png", "svg"):
        with replacing_path(folder / f"topology.{suffix}") as file:
            figure.savefig(file, dpi=160)
    write_text(folder / "topology.html", interactive(panels, label, classes))


def static(panels: Sequence[Panel], label: Labels, classes: Sequence[str]) -> Figure:
    """The panels side by side, at most three in a row, with a legend of the classes below."""
    colours = _colours(len(classes))
    height, width = _grid(len(panels))
    figure = Figure(figsize=(4 * width, 4.3 * height + 0.5), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True).flatten()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        _scatter(axes, panel, [colours[n] for n in label])
    if len(classes) <= LARGEST_LEGEND:
        marks = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours]
        columns = min(len(classes), 3 * width)
        figure.legend(marks, classes, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _scatter(axes: Axes, panel: Panel, colours: list[Colour]) -> None:
    if panel.edges is not None:
        axes.add_collection(LineCollection(_edges(panel), colors="#88888826", linewidths=0.3, zorder=1))
    x, y = panel.points.T
    axes.scatter(x, y, c=colours, s=7, linewidths=0, zorder=2)
    axes.set_title(_wrapped(panel.title), fontsize=10)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#cccccc")


def interactive(panels: Sequence[Panel], label: Labels, classes: Sequence[str]) -> str:
    """The panels as a page that needs no network: hovering over an image names it, a click on a class hides it."""
    titles = [_wrapped(panel.title).replace("\n", "<br>") for panel in panels]
    height, width = _grid(len(panels))
    figure = make_subplots(
        rows=height, cols=width, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.08
    )
    for number, panel in enumerate(panels):
        place = {"row": 1 + number // width, "col": 1 + number % width}
        for trace in _traces(panel, label, classes):
            figure.add_trace(trace.update(showlegend=number == 0), **place)
        figure.update_xaxes(visible=False, matches="x", **place)
        figure.update_yaxes(visible=False, matches="y", scaleanchor="x", **place)
    figure.update_layout(template="plotly_white", margin={"l": 10, "r": 10, "t": 60, "b": 10}, height=480 * height + 70)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def _traces(panel: Panel, label: Labels, classes: Sequence[str]) -> list[Any]:
    """The graph's edges, if they are drawn, and the points of each class."""
    traces = []
    if panel.edges is not None:
        gap = np.full(2, np.nan)
        x, y = np.concatenate([(start, end, gap) for start, end in _edges(panel)]).T
        line = {"color": "rgba(136,136,136,.3)", "width": 0.5}
        traces.append(
            go.Scattergl(x=x, y=y, mode="lines", line=line, name="graph", legendgroup="graph", hoverinfo="skip")
        )
    for n, (name, colour) in enumerate(zip(classes, _colours(len(classes)), strict=True)):
        images = np.flatnonzero(label == n)
        x, y = panel.points[images].T
        rgb = ",".join(str(round(255 * part)) for part in colour)
        traces.append(
            go.Scattergl(
                x=x, y=y, mode="markers", name=name, legendgroup=name, text=[f"image {i}" for i in images],
                marker={"color": f"rgb({rgb})", "size": 5}, hovertemplate="%{text}, %{fullData.name}<extra></extra>",
            )
        )  # fmt: skip
    return traces


def _edges(panel: Panel) -> list[tuple[Any, Any]]:
    """The ends of each edge of the graph, without the loop of an image to itself."""
    assert panel.edges is not None
    return [(panel.points[i], panel.points[j]) for i, row in enumerate(panel.edges) for j in row[1:]]


def _wrapped(title: str) -> str:
    """A title in lines of a panel's width."""
    return textwrap.fill(re.sub(r",\s*", ", ", title), 38, break_on_hyphens=False)


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns, at most three columns."""
    height = math.ceil(panels / 3)
    return height, math.ceil(panels / height)


def _colours(count: int) -> list[Colour]:
    """A colour for each class, as parts of 1."""
    if count <= 20:
        palette: Any = mpl.colormaps["tab10" if count <= 10 else "tab20"]
        return list(palette.colors[:count])
    return [mpl.colormaps["gist_rainbow"](n / count)[:3] for n in range(count)]
