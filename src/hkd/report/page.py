"""Writes the report: gathers, plots, fills the page."""

from __future__ import annotations

import base64
import io
import statistics
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from plotly.offline import get_plotlyjs

import hkd
from hkd.analysis.trials import by_key
from hkd.config import EvaluateConfig, ReportConfig
from hkd.errors import RequestError
from hkd.files import write_text
from hkd.report import figures
from hkd.report.collect import (
    ClassAccuracy,
    Group,
    Numbers,
    Run,
    by_class,
    common_and_differing,
    comparisons,
    experiments,
    find_finished,
    grouped,
)
from hkd.report.cost import cost_of
from hkd.report.results import Comparison
from hkd.report.tables import spread
from hkd.report.topology import MEASURES
from hkd.trained import find_trained, open_test, teacher_of

SAMPLES = 12


@dataclass(frozen=True)
class Cell:
    """A cell's text, and the number that it sorts by."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class TableRow:
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    heads: list[str]
    rows: list[TableRow]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, which stand to the right."""
        return any(row.cells[column].key is not None for row in self.rows)


@dataclass(frozen=True)
class Part:
    """What stands in a section, from top to bottom; all but the figure is escaped by the page."""

    heading: str = ""
    text: str = ""
    table: Table | None = None
    figure: str = ""
    image: str = ""
    samples: list[dict[str, str]] = field(default_factory=list)
    folded: bool = False


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    parts: list[Part]


def write_report(config: ReportConfig) -> Path:
    """Writes one HTML page that shows everything that some run folders hold, and needs nothing but itself.

    Returns:
        The file.

    Raises:
        RequestError: there is no finished run, or the file cannot be written.
    """
    config.check()
    runs, folders = find_finished(config.runs)
    groups = grouped(runs)
    sections = [
        _networks(groups),
        _comparisons(comparisons(runs)),
        _curves(groups),
        _sweeps(folders),
        _topologies(folders),
        _transfers(folders),
        _classes(groups),
        _samples(config, groups),
        _configuration(runs),
        _reproduce(groups),
    ]
    page = _render(config.title, _subtitle(runs), [section for section in sections if section is not None])
    output = Path(config.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise RequestError(f"output: cannot write {output} ({error.strerror})") from error
    return output


def _render(title: str, subtitle: str, sections: list[Section]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((files("hkd.report") / "page.html").read_text())
    return template.render(title=title, subtitle=subtitle, sections=sections, plotly=get_plotlyjs())


def _subtitle(runs: list[Run]) -> str:
    datasets = ", ".join(sorted({run.spec.data.dataset for run in runs}))
    return f"{len(runs)} runs on {datasets}; hkd {hkd.__version__}"


def _number(value: float, text: str = "{:.2f}") -> Cell:
    return Cell(text.format(value), float(value))


def _best_first(rows: list[tuple[float, TableRow]]) -> list[TableRow]:
    """Rows by a number, the largest first."""
    return [row for _, row in sorted(rows, key=lambda found: -found[0])]


def _networks(groups: list[Group]) -> Section:
    """Each group's accuracy, and what its network costs."""
    rows, points = [], []
    for group in groups:
        top1, about = group.values("top1_last"), group.runs[0].about
        cost = cost_of(about["model"], about["num_classes"], about["image_size"]) if "image_size" in about else None
        cells = [Cell(group.label), Cell(spread(top1), statistics.fmean(top1))]
        cells.append(_number(statistics.fmean(group.values("top1_best"))))
        cells.append(_number(statistics.fmean(group.values("top5_last"))))
        if cost is None:
            cells += [_number(next(iter(group.values("parameters")), 0), "{:,}"), Cell("", 0.0), Cell("", 0.0)]
        else:
            cells += [_number(cost.parameters, "{:,}"), _number(cost.flops / 1e6, "{:,.1f}"), _number(cost.latency_ms)]
            points.append((group.label, group.is_teacher, top1, cost))
        cells.append(_number(statistics.fmean(group.values("seconds")) / 60, "{:.1f}"))
        rows.append((statistics.fmean(top1), TableRow(cells)))
    heads = ["network", "top-1, last epoch", "best epoch", "top-5", "parameters", "MFLOPs", "latency (ms)", "minutes"]
    text = (
        "Accuracies are of the test split in percent, mean ± standard deviation (runs). The last epoch is the result; "
        "the best was chosen on the test split and flatters. Operations and latency are of one image; latency was "
        "measured on the CPU of the machine that wrote this page."
    )
    parts = [Part(text=text, table=Table(heads, _best_first(rows)))]
    if len(points) > 1:
        parts.append(Part(heading="Accuracy against cost", figure=figures.html(figures.against_cost(points))))
    return Section("networks", "Networks", parts)


def _comparisons(settings: list[tuple[str, Comparison]]) -> Section | None:
    """Differences to the best baseline, with intervals, for each setting by itself."""
    if not settings:
        return None
    parts = [part for words, found in settings for part in _comparison(found, words if len(settings) > 1 else "")]
    return Section("comparison", "Comparison", parts)


def _comparison(comparison: Comparison, setting: str) -> list[Part]:
    parts = []
    for pair in comparison.numbers()["pairs"]:
        rows = []
        for found in pair["methods"]:
            if not found["top1_last"]:
                continue
            gain = found["difference"]
            told = "baseline" if gain is None else f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
            cells = [Cell(found["method"]), Cell(spread(found["top1_last"]), statistics.fmean(found["top1_last"]))]
            cells.append(Cell(told, 0.0 if gain is None else gain["mean"]))
            cells.append(Cell("") if found["ari"] is None else _number(found["ari"], "{:.0f} %"))
            cells.append(_number(statistics.fmean(found["images_per_second"]), "{:,.0f}"))
            rows.append((statistics.fmean(found["top1_last"]), TableRow(cells)))
        heads = ["method", "top-1, last epoch", f"minus {pair['baseline']}", "ARI", "images/s"]
        table = Table(heads, _best_first(rows))
        text = (
            "Differences in points with 95 % intervals, a paired bootstrap over trials and test images; an interval "
            "that holds 0 does not decide. ARI: by how much more "
            f"{comparison.headline or 'HKD'} improves on the student alone than the method does."
        )
        heading = f"{pair['teacher']} → {pair['student']}{f' ({setting})' if setting else ''}"
        parts.append(Part(heading=heading, text=text, table=table))
    return parts


def _curves(groups: list[Group]) -> Section:
    return Section("curves", "Learning curves", [Part(figure=figures.html(figures.curves(groups)))])


def _sweeps(folders: list[Path]) -> Section | None:
    parts = [
        Part(heading=str(numbers["field"]), figure=figures.html(figures.sweep(numbers)))
        for _, numbers in experiments(folders, "sweep")
    ]
    return Section("sweeps", "Parameter analysis", parts) if parts else None


def _topologies(folders: list[Path]) -> Section | None:
    parts = []
    for folder, numbers in experiments(folders, "topology"):
        rows = _means(numbers["rows"], list(MEASURES), 3)
        text = (
            f"How {numbers['images']:,} test images lie beside one another for {numbers['teacher']} and its students, "
            f"and how much of it the students keep (1: all), by the {numbers['neighbours']} nearest neighbours."
        )
        image = folder / "topology.png"
        picture = _data_url(image.read_bytes()) if image.is_file() else ""
        parts.append(Part(text=text, table=Table(["network", *MEASURES.values()], rows), image=picture))
    return Section("topology", "Topology", parts) if parts else None


def _transfers(folders: list[Path]) -> Section | None:
    parts = []
    for _, numbers in experiments(folders, "transfer"):
        wide = [row | {row["dataset"]: row["top1"]} for row in numbers["rows"]]
        table = Table(["network", *numbers["datasets"]], _means(wide, numbers["datasets"], 2))
        parts.append(Part(text="; ".join(numbers["protocol"]) + ".", table=table))
    return Section("transfer", "Transfer", parts) if parts else None


def _means(rows: list[Numbers], names: list[str], digits: int) -> list[TableRow]:
    """A row for each experiment with the means over its seeds. Numbers that a result of version 0.1 lacks are blank."""
    table = []
    for trials in by_key(rows):
        cells = [Cell(trials.label)]
        for name in names:
            values = trials.values(name)
            cells.append(Cell(spread(values, digits), statistics.fmean(values) if values else 0.0))
        table.append(TableRow(cells))
    return table


def _classes(groups: list[Group]) -> Section | None:
    """What each group finds hardest, then all its classes, folded."""
    hardest, parts = [], []
    for group in groups:
        own = [run for run in group.runs if run.has_predictions]
        if not own:
            continue
        label, classes = group.label, by_class(own)
        rows = [TableRow([*_of_class(c), _number(c.images, "{:,}")]) for c in classes]
        often = max(classes, key=lambda c: c.times)
        hardest.append(TableRow([Cell(label), *_of_class(classes[0])[:2], *_of_class(often)[2:], Cell(often.name)]))
        heads = ["class", "top-1", "most often taken for", "times", "images"]
        parts.append(Part(heading=label, table=Table(heads, rows), folded=True))
    if not parts:
        return None
    text = "Over all runs of a network; times are counted over all of them, images are those of the test split."
    heads = ["network", "hardest class", "its top-1", "most often seen", "times", "where there was"]
    return Section("classes", "Classes and confusions", [Part(text=text, table=Table(heads, hardest)), *parts])


def _of_class(found: ClassAccuracy) -> list[Cell]:
    return [
        Cell(found.name),
        _number(found.top1, "{:.1f}"),
        Cell(found.mistaken_for),
        _number(found.times, "{:,}"),
    ]


def _samples(config: ReportConfig, groups: list[Group]) -> Section | None:
    """Test images on which a teacher and a student disagree, where the images can be found."""
    pair = _taught(groups)
    if pair is None:
        return None
    (teacher, teacher_label), (student, student_label) = pair
    asked = EvaluateConfig(checkpoint=str(student.path), data_root=config.data_root)
    try:
        data = open_test(asked, find_trained(student.path, "of a run"))
        (theirs, label), (ours, same) = teacher.folder.predictions(), student.folder.predictions()
        if len(data) != len(label) or not (label == same).all():
            return None
        differing = np.flatnonzero(theirs != ours)
        chosen = np.random.default_rng(0).permutation(differing)[:SAMPLES]
        names = [str(name) for name in student.about["classes"]]
        samples = [
            {
                "image": _data_url(_png(data[int(n)][0].numpy())),
                "label": names[label[n]],
                "teacher": names[theirs[n]],
                "student": names[ours[n]],
            }
            for n in sorted(chosen)
        ]
    except RequestError:
        return None  # the images are elsewhere; the rest of the page does not need them
    text = (
        f"{len(differing):,} of {len(label):,} test images are classified differently by {teacher_label} and "
        f"{student_label} (seed {student.seed}); {len(samples)} of them, drawn at random."
    )
    return Section("samples", "Where teacher and student disagree", [Part(text=text, samples=samples)])


def _taught(groups: list[Group]) -> tuple[tuple[Run, str], tuple[Run, str]] | None:
    """A teacher and one of its students, both with predictions for the same images, and what they are called."""
    labelled = [(run, group.label) for group in groups for run in group.runs if run.has_predictions]
    for student, label in labelled:
        if student.spec.teacher is None:
            continue
        trained = teacher_of(find_trained(student.path, "of a run"))
        for teacher, name in labelled if trained is not None else ():
            if trained is not None and teacher.path.resolve() == trained.weights.parent.resolve():
                return (teacher, name), (student, label)
    return None


def _configuration(runs: list[Run]) -> Section:
    shared, differing = common_and_differing(runs)
    rows = [TableRow([Cell(name), Cell(value)]) for name, value in shared.items()]
    other = [TableRow([Cell(name), Cell(", ".join(values))]) for name, values in differing.items()]
    return Section(
        "configuration",
        "Configuration",
        [
            Part(heading="The same in all runs that have the field", table=Table(["field", "value"], rows)),
            Part(heading="Different", table=Table(["field", "values"], other)),
        ],
    )


def _reproduce(groups: list[Group]) -> Section:
    """The command for each run; what made them stands above where it is the same for all, else beside."""
    labelled = [(run, group.label) for group in groups for run in group.runs]
    made = [_made_by(run.summary) for run, _ in labelled]
    same = len(set(made)) == 1
    rows = []
    for (run, label), by in zip(labelled, made, strict=True):
        cells = [Cell(str(run.path)), Cell(label), _number(run.seed, "{:.0f}")]
        cells += [_number(run.summary["top1_last"]), *([] if same else [Cell(by)]), Cell(run.command)]
        rows.append(TableRow(cells))
    heads = ["run", "network", "seed", "top-1", *([] if same else ["made by"]), "command"]
    text = "NEW is a folder of your choice." + (f" All were made by {made[0]}." if same else "")
    return Section("reproduce", "How to reproduce each number", [Part(text=text, table=Table(heads, rows))])


MADE_BY = {"hkd": "hkd", "torch": "torch", "Python": "python"}


def _made_by(summary: Numbers) -> str:
    versions = ", ".join(f"{name} {summary[key]}" for name, key in MADE_BY.items() if key in summary)
    return f"{versions} on {summary.get('machine', summary.get('device'))}"


def _png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
