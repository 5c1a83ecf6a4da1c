"""What the page is made of, from top to bottom, and its HTML."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
from plotly.offline import get_plotlyjs

from hkd.report.tables import spread


@dataclass(frozen=True)
class Cell:
    """A cell's text, and the number that it is sorted by."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under the heads of their columns."""

    heads: list[str]
    rows: list[list[Cell]]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, which are aligned to the right."""
        return any(row[column].key is not None for row in self.rows)


@dataclass(frozen=True)
class Count:
    """A cell of a confusion matrix: its text, empty for none, how dark it is in percent, and whether it is right."""

    text: str
    shade: int
    right: bool
    title: str


@dataclass(frozen=True)
class Matrix:
    """How often images of a class (row) are given a class (column)."""

    caption: str
    names: list[str]
    rows: list[list[Count]]


@dataclass(frozen=True)
class Part:
    """A part of a section, in the order of the attributes. Everything but the figure is escaped."""

    heading: str = ""
    text: str = ""
    table: Table | None = None
    matrix: Matrix | None = None
    figure: str = ""
    image: str = ""
    samples: list[dict[str, str]] = field(default_factory=list)
    folded: bool = False


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    parts: list[Part]


def number(value: float | None, text: str = "{:.2f}") -> Cell:
    """A number as a cell; blank for None."""
    return Cell("") if value is None else Cell(text.format(value), float(value))


def mean(values: Sequence[float], text: str = "{:.2f}", scale: float = 1.0) -> Cell:
    """The mean of some numbers as a cell; blank without numbers."""
    return number(scale * statistics.fmean(values) if values else None, text)


def mean_and_spread(values: list[float], digits: int = 2) -> Cell:
    """Mean, standard deviation and count as a cell that is sorted by the mean; blank without numbers."""
    return Cell(spread(values, digits), statistics.fmean(values) if values else None)


def best_first(rows: list[list[Cell]], column: int = 1) -> list[list[Cell]]:
    """Rows by the number in a column, the largest first, those without one last."""
    return sorted(rows, key=lambda row: (row[column].key is None, -(row[column].key or 0.0)))


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as HTML that loads nothing."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((files("hkd.report") / "page.html").read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections, plotly=get_plotlyjs())
