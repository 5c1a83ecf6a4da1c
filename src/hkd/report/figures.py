"""The plots of a report, by plotly. Colours are readable on light and dark ground; the ground itself is the page's."""

from __future__ import annotations

import statistics
from typing import Any

import plotly.graph_objects as go

from hkd.experiments.sweep import accuracies
from hkd.report.collect import Numbers, Run
from hkd.report.cost import Cost

COLOURS = ("#3b82c4", "#e07b39", "#4c9f70", "#c0504d", "#8e6bbf", "#a0785a", "#d173b3", "#7f7f7f", "#b5b147", "#3fb3b3")
MUTED = "#8a8a8a"


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    axis = {"gridcolor": "rgba(138,138,138,.25)", "zeroline": False, "linecolor": MUTED, "automargin": True}
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": MUTED, "size": 13},
        margin={"l": 10, "r": 10, "t": 20, "b": 10},
        height=420,
        xaxis=axis | {"title": x},
        yaxis=axis | {"title": y},
        legend={"orientation": "h", "y": -0.25},
    )
    return figure


def html(figure: go.Figure) -> str:
    """A figure as a part of a page that holds plotly's script already."""
    part: str = figure.to_html(
        include_plotlyjs=False, full_html=False, config={"displaylogo": False, "responsive": True}
    )
    return part


def colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]


def curves(groups: dict[str, list[Run]]) -> go.Figure:
    """Test accuracy by epoch: the mean of a group's runs, and each run faintly."""
    figure = _figure("epoch", "test top-1 (%)")
    for n, (label, runs) in enumerate(groups.items()):
        series = [[row["test_top1"] for row in run.rows] for run in runs]
        if len(runs) > 1:
            for values in series:
                faint = {"color": colour(n), "width": 1}
                figure.add_scatter(
                    y=values, x=_epochs(values), mode="lines", line=faint, opacity=0.3, showlegend=False,
                    legendgroup=label, hoverinfo="skip",
                )  # fmt: skip
        means = [statistics.fmean(values) for values in zip(*series, strict=False)]
        figure.add_scatter(
            y=means, x=_epochs(means), mode="lines", name=f"{label} ({len(runs)})", legendgroup=label,
            line={"color": colour(n), "width": 2.5},
        )  # fmt: skip
    return figure


def _epochs(values: list[float]) -> list[int]:
    return list(range(1, len(values) + 1))


def against_cost(rows: list[tuple[str, bool, list[float], Cost]]) -> go.Figure:
    """Accuracy against parameters, operations or latency, by a click.

    Args:
        rows: label, whether it is a teacher, accuracies, cost.
    """
    kinds = {
        "parameters": [cost.parameters / 1e6 for *_, cost in rows],
        "MFLOPs an image": [cost.flops / 1e6 for *_, cost in rows],
        "latency (ms)": [cost.latency_ms for *_, cost in rows],
    }
    figure = _figure("million parameters", "top-1, last epoch (%)")
    for n, (label, teaches, top1, _) in enumerate(rows):
        figure.add_scatter(
            x=[kinds["parameters"][n]],
            y=[statistics.fmean(top1)],
            error_y={"type": "data", "array": [statistics.stdev(top1) if len(top1) > 1 else 0.0]},
            mode="markers",
            name=label,
            marker={"color": colour(n), "size": 12, "symbol": "diamond" if teaches else "circle"},
        )
    buttons = [
        {"label": name, "method": "update", "args": [{"x": [[x] for x in values]}, {"xaxis.title.text": name}]}
        for name, values in kinds.items()
    ]
    figure.update_xaxes(type="log")
    figure.update_layout(updatemenus=[{"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.15}])
    return figure


def sweep(numbers: Numbers) -> go.Figure:
    """A line for each method with error bars of one standard deviation."""
    figure = _figure(numbers["field"], "top-1, last epoch (%)")
    for n, method in enumerate(numbers["methods"]):
        found = {str(value): accuracies(numbers, method, value) for value in numbers["values"]}
        known: dict[str, Any] = {value: values for value, values in found.items() if values}
        bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known.values()]
        figure.add_scatter(
            x=list(known), y=[statistics.fmean(values) for values in known.values()], mode="lines+markers", name=method,
            error_y={"type": "data", "array": bars}, line={"color": colour(n)},
        )  # fmt: skip
    figure.update_xaxes(type="category")
    return figure
