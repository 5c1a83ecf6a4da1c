"""The plots of a report, by plotly. Colours are readable on light and dark backgrounds, which the page sets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from hkd.report.collect import Group, Numbers, Run
from hkd.report.cost import Cost
from hkd.report.sweeps import accuracies

COLOURS = ("#3b82c4", "#e07b39", "#4c9f70", "#c0504d", "#8e6bbf", "#a0785a", "#d173b3", "#7f7f7f", "#b5b147", "#3fb3b3")
MUTED = "#8a8a8a"
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "triangle-up")
PLOT, LINE = 420, 20
"""Heights in pixels: of a plot with its margins, and of a line of its legend."""


def _figure(x: str, y: str, names: int) -> go.Figure:
    """An empty figure with room below the plot for a legend of that many names."""
    figure = go.Figure()
    legend = LINE * names
    axis = {"gridcolor": "rgba(138,138,138,.25)", "zeroline": False, "linecolor": MUTED}
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": MUTED, "size": 13},
        margin={"l": 60, "r": 10, "t": 50, "b": 70 + legend, "autoexpand": False},
        height=PLOT + legend,
        xaxis=axis | {"title": x},
        yaxis=axis | {"title": y},
        legend={"y": -65 / (PLOT - 120), "yanchor": "top", "x": 0, "tracegroupgap": 0, "maxheight": legend + LINE},
    )
    return figure


def html(figure: go.Figure) -> str:
    """A figure as a part of a page that has plotly's script already."""
    part: str = figure.to_html(
        include_plotlyjs=False, full_html=False, config={"displayModeBar": False, "responsive": True}
    )
    return part


def colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]


def _style(styles: tuple[str, ...], n: int) -> str:
    """The n-th line's style, which distinguishes it from lines of the same colour."""
    return styles[n // len(COLOURS) % len(styles)]


def _choices(choices: list[tuple[str, list[Any]]], axis: str, titles: list[str]) -> dict[str, Any]:
    """Buttons above the plot that change the values of every trace on one axis."""
    buttons = [
        {"label": label, "method": "update", "args": [{axis: values}, {f"{axis}axis.title.text": title}]}
        for (label, values), title in zip(choices, titles, strict=True)
    ]
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}
    return {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True} | place


CURVES = {"test top-1 (%)": "test_top1", "training top-1 (%)": "train_top1", "training loss": "loss"}
BUTTONS = ("test top-1", "training top-1", "loss")


def curves(groups: Sequence[Group]) -> go.Figure:
    """Accuracies and loss by epoch, chosen by buttons: the mean of a group's runs, and each run as a faint line.

    What is evaluated after the last epoch alone is a point and no curve, so that other curves are shown first.
    """
    figure = _figure("epoch", "", len(groups))
    shown: dict[str, list[list[float | None]]] = {title: [] for title in CURVES}
    for n, group in enumerate(groups):
        label, runs = group.label, group.runs
        for title, field in CURVES.items():
            series = [[row.get(field) for row in run.rows] for run in runs]
            means = [_mean(values) for values in zip(*series, strict=False)]
            shown[title] += [*(series if len(runs) > 1 else []), means]
        faint = {"color": colour(n), "width": 1}
        for run in runs if len(runs) > 1 else []:
            figure.add_scatter(
                x=_epochs(run), mode=_mode([run]), line=faint, opacity=0.3, showlegend=False, legendgroup=label,
                hoverinfo="skip",
            )  # fmt: skip
        figure.add_scatter(
            x=_epochs(runs[0]), mode=_mode(runs), name=f"{label} ({len(runs)})", legendgroup=label,
            line={"color": colour(n), "width": 2.5, "dash": _style(DASHES, n)},
        )  # fmt: skip
    first = next((n for n, lines in enumerate(shown.values()) if any(map(_is_curve, lines))), 0)
    title, values = list(shown.items())[first]
    for trace, line in zip(figure.data, values, strict=True):
        trace.y = line
    choices = _choices(list(zip(BUTTONS, shown.values(), strict=True)), "y", list(CURVES))
    figure.update_layout(updatemenus=[choices | {"active": first}], yaxis_title=title)
    last = max((epoch for group in groups for run in group.runs for epoch in _epochs(run)), default=1)
    figure.update_xaxes(range=[1, last] if last > 1 else [0.5, 1.5], tick0=0, dtick=whole_step(last), tickformat=",d")
    return figure


def _is_curve(values: Sequence[float | None]) -> bool:
    """Whether there is a line to draw between two of the values."""
    return sum(value is not None for value in values) > 1


def _mode(runs: Sequence[Run]) -> str:
    """How plotly draws their curves: with points where one of them has a single value, which no line would show."""
    fields = [[row.get(field) for row in run.rows] for run in runs for field in CURVES.values()]
    return "lines" if all(map(_is_curve, fields)) else "lines+markers"


def whole_step(last: int) -> int:
    """The distance of an axis's ticks up to a whole number: 1, 2 or 5 times a power of ten, so that there are about 6.

    A page of 400 pixels has room for that many.
    """
    power = int("1".ljust(len(str(last // 6)), "0"))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if last / step <= 6 or step == 10 * power)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of the runs that have a value at an epoch; a run may be evaluated after the last epoch only."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _epochs(run: Run) -> list[int]:
    return [row["epoch"] for row in run.rows]


@dataclass(frozen=True)
class Point:
    """A network in the plot of accuracy against cost.

    Attributes:
        label: of its runs.
        is_teacher: drawn as a diamond.
        top1: of each run, in percent.
        cost: of the network.
    """

    label: str
    is_teacher: bool
    top1: list[float]
    cost: Cost


def against_cost(points: Sequence[Point]) -> go.Figure:
    """Accuracy against parameters, operations or latency, chosen by buttons."""
    kinds = {
        "parameters": [[point.cost.parameters / 1e6] for point in points],
        "MFLOPs": [[point.cost.flops / 1e6] for point in points],
        "latency": [[point.cost.latency_ms] for point in points],
    }
    titles = ["million parameters", "million operations an image", "latency of an image (ms)"]
    figure = _figure(titles[0], "top-1, last epoch (%)", len(points))
    for n, point in enumerate(points):
        figure.add_scatter(
            x=kinds["parameters"][n],
            y=[statistics.fmean(point.top1)],
            error_y={"type": "data", "array": [_deviation(point.top1)]},
            mode="markers",
            name=point.label,
            marker={"color": colour(n), "size": 12, "symbol": "diamond" if point.is_teacher else _style(SYMBOLS, n)},
        )
    ticks = [float(f"{digit}e{power}") for power in range(-4, 9) for digit in (1, 2, 5)]
    words = [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=words, minor={"ticks": "outside", "dtick": "D1"})
    figure.update_layout(updatemenus=[_choices(list(kinds.items()), "x", titles)])
    return figure


def sweep(numbers: Numbers) -> go.Figure:
    """A line for each method with error bars of one standard deviation."""
    figure = _figure(numbers["field"], "top-1, last epoch (%)", len(numbers["methods"]))
    for n, method in enumerate(numbers["methods"]):
        means, bars = [], []
        values = [value for value in numbers["values"] if accuracies(numbers, method, value)]
        for value in values:
            top1 = accuracies(numbers, method, value)
            means.append(statistics.fmean(top1))
            bars.append(_deviation(top1))
        figure.add_scatter(
            x=[str(value) for value in values], y=means, mode="lines+markers", name=method,
            error_y={"type": "data", "array": bars}, line={"color": colour(n), "dash": _style(DASHES, n)},
        )  # fmt: skip
    order = [str(value) for value in numbers["values"]]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return figure


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation; 0 of a single value, which draws no bar."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
