"""The sections of the page: tables and figures of what the runs hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hkd.analysis.trials import by_key
from hkd.report import figures, outputs
from hkd.report.collect import Group, Numbers, Run, results
from hkd.report.confusions import ClassAccuracy, by_class, confusion_matrix
from hkd.report.cost import cost_of
from hkd.report.layout import Cell, Part, Section, Table, best_first, mean, mean_and_spread, number
from hkd.report.results import Comparison
from hkd.report.samples import picture_in
from hkd.report.sweeps import ranked_tries, short
from hkd.report.tables import ends
from hkd.report.topology import MEASURES

Labels = Mapping[str, str]
"""What the groups of the page are called, by key."""


def networks(groups: list[Group]) -> Section:
    """Each group's accuracy, and the cost of its network."""
    rows, points = [], []
    rows += _teachers_of_files(groups)
    has_table = any("teacher_cache" in run.summary for group in groups for run in group.runs)
    for group in groups:
        top1, about = group.values("top1_last"), group.runs[0].about
        cost = cost_of(about["model"], about["num_classes"], about["image_size"]) if "image_size" in about else None
        cells = [Cell(group.label), mean_and_spread(top1), mean(group.values("top1_best"))]
        cells.append(mean(group.values("top5_last")))
        if cost is None:
            cells += [mean(group.values("parameters")[:1], "{:,.0f}"), Cell(""), Cell("")]
        else:
            cells += [number(cost.parameters, "{:,}"), number(cost.flops / 1e6, "{:,.1f}"), number(cost.latency_ms)]
        if cost is not None and top1:
            points.append(figures.Point(group.label, group.is_teacher, top1, cost))
        cells.append(mean(group.values("seconds"), "{:.1f}", 1 / 60))
        share = outputs.read_share(run.summary for run in group.runs)
        rows.append([*cells, *([_outputs(share, group.spec.method is not None)] if has_table else [])])
    width = max(map(len, rows))
    rows = [[*row, *[Cell("")] * (width - len(row))] for row in rows]
    heads = ["network", "top-1, last epoch", "best epoch", "top-5", "parameters", "MFLOPs", "latency (ms)", "minutes"]
    heads += [outputs.HEAD] if has_table else []
    of = "test split"
    if any(group.spec.data.holdout for group in groups):
        of += ", or of the held-out training images where a run has a holdout,"
    text = (
        f"Accuracies are of the {of} in percent, mean ± standard deviation (runs). The last epoch is the result; the "
        "best was chosen on the same images and is biased upwards. Operations and latency are of one image; latency "
        "was measured on the CPU of the machine that wrote this page. Of a teacher that was a file, its students' runs "
        "measured the accuracy."
    )
    parts = [Part(text=text, table=Table(heads, best_first(rows)))]
    if len(points) > 1:
        parts.append(Part(heading="Accuracy against cost", figure=figures.html(figures.against_cost(points))))
    return Section("networks", "Networks", parts)


def _teachers_of_files(groups: list[Group]) -> list[list[Cell]]:
    """A row for each teacher without a run here, as one of a file: its accuracy is what its students' runs measured."""
    top1: dict[tuple[str, str], list[float]] = {}
    for run in (run for group in groups for run in group.runs):
        found = {(teacher.key, teacher.seed) for teacher in run.teachers}
        if len(found) == len(run.spec.teachers):
            continue
        measured = run.summary.get("teachers_top1") or [run.summary.get("teacher_top1")]
        for teacher, accuracy in zip(run.spec.teachers, measured, strict=False):
            named = teacher.digest.split(" ")
            if named[0] == "run" and any(named[1:] == [key, str(seed)] for key, seed in found):
                continue
            # The same file has the same accuracy on the same images.
            identity = (f"{teacher.name} (teacher)", f"{teacher.digest} {run.spec.data.digest} {accuracy}")
            if accuracy is not None:
                top1.setdefault(identity, [float(accuracy)])
    return [[Cell(name), Cell(f"{values[0]:.2f}", values[0])] for (name, _), values in top1.items()]


def comparison(comparisons: list[tuple[str, Comparison]]) -> Section | None:
    """Differences to the best baseline with their intervals, for each pair of networks under each setting by itself."""
    text = (
        "Differences in points with 95 % intervals, a paired bootstrap over trials and test images: an interval that "
        "contains 0 does not decide, and a single trial says nothing about other seeds. Seeds alone: the interval of a "
        "paired t over the trials, with the test images as given. Runs are compared only if they "
        "differ in nothing but the method and the seed."
    )
    parts = [Part(text=text), *(_comparison(heading, one) for heading, one in comparisons)]
    return Section("comparison", "Comparison", parts) if comparisons else None


def _comparison(heading: str, one: Comparison) -> Part:
    (pair,) = one.numbers()["pairs"]
    has_ari = any(row["ari"] is not None for row in pair["methods"])
    has_table = any(row["teacher_read"] is not None for row in pair["methods"])
    rows = []
    for row in pair["methods"]:
        gain = row["difference"]
        text = "baseline" if row["method"] == pair["baseline"] else ""
        if gain is not None:
            text = f"{gain['mean']:+.2f} {ends(gain)}"
        cells = [Cell(row["method"]), mean_and_spread(row["top1_last"])]
        cells.append(Cell(text, 0.0 if gain is None else gain["mean"]))
        cells.append(Cell(ends(row["difference_seeds"])))
        cells += [number(row["ari"], "{:.0f} %")] if has_ari else []
        cells.append(mean(row["images_per_second"], "{:,.0f}"))
        cells += [_outputs(row["teacher_read"], row["method"] != "ce")] if has_table else []
        rows.append(cells)
    heads = ["method", "top-1, last epoch", f"minus {pair['baseline']}" if pair["baseline"] else "difference"]
    heads.append("seeds alone")
    text = (
        f"ARI: by how much more {one.headline} improves on the student alone than the method does, relative to the "
        "method's own improvement."
    )
    heads += [*(["ARI"] if has_ari else []), "images/s", *([outputs.HEAD] if has_table else [])]
    table = Table(heads, best_first(rows))
    return Part(heading=heading, text=text if has_ari else "", table=table)


def _outputs(share: float | None, distils: bool) -> Cell:
    return Cell(outputs.in_words(share, distils=distils), share)


def curves(groups: list[Group]) -> Section:
    return Section("curves", "Learning curves", [Part(figure=figures.html(figures.curves(groups)))])


def _results(folders: list[Path], name: str) -> Iterator[tuple[str, Path, Numbers]]:
    """The results of one kind, with their folders, which are their headings if there are several."""
    each = list(results(folders, name))
    for folder, numbers in each:
        yield str(folder) if len(each) > 1 else "", folder, numbers


def sweeps(folders: list[Path]) -> Section | None:
    parts = [
        Part(heading=" in ".join(filter(None, [numbers["field"], place])), figure=figures.html(figures.sweep(numbers)))
        for place, _, numbers in _results(folders, "sweep")
    ]
    return Section("sweeps", "Parameter analysis", parts) if parts else None


def searches(folders: list[Path]) -> Section | None:
    """The tries of each search, the best first."""
    parts = []
    for place, _, numbers in _results(folders, "search"):
        names, tries = ranked_tries(numbers)
        rows = [
            [number(row["try"], "{:.0f}"), number(row.get("top1_holdout")),
             *(_value(row["values"].get(name)) for name in names), Cell(row.get("state", "proposed"))]
            for row in tries
        ]  # fmt: skip
        text = (
            "Accuracies are of held-out training images; the test split was not opened. The best of several tries is "
            "biased upwards and is no result."
        )
        table = Table(["try", "top-1, held out", *names, "state"], rows)
        parts.append(Part(heading=" in ".join(filter(None, [numbers["method"], place])), text=text, table=table))
    return Section("searches", "Search", parts) if parts else None


def _value(value: Any) -> Cell:
    """A field's value: numbers are sorted as numbers."""
    return Cell(short(value), float(value) if isinstance(value, int | float) else None)


def topologies(folders: list[Path], labels: Labels) -> Section | None:
    """How much of their teacher's geometry students keep, with the panels."""
    parts = []
    for place, folder, numbers in _results(folders, "topology"):
        text = (
            f"How alike {numbers['teacher']} and its students embed {numbers['images']:,} test images (1: as the "
            f"teacher does); kNN overlap and trustworthiness are of the {numbers['neighbours']} nearest neighbours."
        )
        picture = picture_in(folder, "topology.png")
        table = Table(["network", *MEASURES.values()], _means(numbers["rows"], list(MEASURES), 3, labels))
        parts.append(Part(heading=place, text=text, table=table, image=picture))
    return Section("topology", "Topology", parts) if parts else None


def transfers(folders: list[Path], labels: Labels) -> Section | None:
    """The accuracy of linear probes on other data sets."""
    parts = []
    for place, _, numbers in _results(folders, "transfer"):
        wide = [row | {row["dataset"]: row["top1"]} for row in numbers["rows"]]
        table = Table(["network", *numbers["datasets"]], _means(wide, numbers["datasets"], 2, labels))
        parts.append(Part(heading=place, text="; ".join(numbers["protocol"]) + ".", table=table))
    return Section("transfer", "Transfer", parts) if parts else None


def _means(rows: list[Numbers], names: list[str], digits: int, labels: Labels) -> list[list[Cell]]:
    """A row for each experiment with the means over its seeds. Numbers that a result of version 0.1 lacks are blank."""
    return [
        [
            Cell(labels.get(trials.rows[0].get("key") or "", trials.label)),
            *(mean_and_spread(trials.values(name), digits) for name in names),
        ]
        for trials in by_key(rows)
    ]


def classes(groups: list[Group]) -> Section | None:
    """The hardest class and the most frequent confusion of each group, then all its classes, folded."""
    hardest, parts = [], []
    for group in groups:
        runs = [run for run in group.runs if run.has_predictions]
        if not runs:
            continue
        ranked = by_class(runs)
        if not ranked:
            continue
        frequent = max(ranked, key=lambda row: row.times)
        hardest.append([Cell(group.label), *_accuracy(ranked[0]), Cell(frequent.name), *_confusion(frequent)])
        rows = [[*_accuracy(row), *_confusion(row), number(row.images, "{:,}")] for row in ranked]
        heads = ["class", "top-1", "most often mistaken for", "times", "images"]
        parts.append(Part(heading=group.label, table=Table(heads, rows), matrix=confusion_matrix(runs), folded=True))
    if not parts:
        return None
    text = "Over all runs of a network: times are summed over them, images are those that the accuracies are of."
    heads = ["network", "hardest class", "its top-1", "most confused class", "mistaken for", "times"]
    return Section("classes", "Classes and confusions", [Part(text=text, table=Table(heads, hardest)), *parts])


def _accuracy(row: ClassAccuracy) -> list[Cell]:
    return [Cell(row.name), number(row.top1, "{:.1f}")]


def _confusion(row: ClassAccuracy) -> list[Cell]:
    return [Cell(row.mistaken_for), number(row.times, "{:,}")]


def configuration(groups: list[Group]) -> Section:
    """The options of the runs: those with one value, and the others."""
    values: dict[str, dict[str, None]] = {}
    for run in (run for group in groups for run in group.runs):
        for name, value in _options(run):
            values.setdefault(name, {})[json.dumps(value)] = None
    ordered = sorted(values.items())
    same = [[Cell(name), Cell(next(iter(seen)))] for name, seen in ordered if len(seen) == 1]
    differing = [[Cell(name), Cell(", ".join(seen))] for name, seen in ordered if len(seen) > 1]
    tables = (
        ("The same in all runs that have the option", Table(["option", "value"], same)),
        ("Different", Table(["option", "values"], differing)),
    )
    parts = [Part(heading=heading, table=table, folded=True) for heading, table in tables if table.rows]
    return Section("configuration", "Configuration", parts)


def _options(run: Run) -> Iterator[tuple[str, Any]]:
    """The flat options but the folder; a method's settings are options like "holistic.k"."""
    for name, value in run.spec.to_flat().items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", setting) for key, setting in value.items())
        elif name != "run":
            yield name, value


def provenance(groups: list[Group]) -> Section | None:
    """What each group's runs were made with, in short; runs of early versions do not say it."""
    rows = []
    for group in groups:
        entries = [entry for run in group.runs for entry in run.summary.get("provenance", [])]
        if entries:
            cells = [Cell("; ".join(dict.fromkeys(words))) for words in zip(*map(_made_with, entries), strict=True)]
            first, last = min(e["started"] for e in entries), max(e["ended"] or "" for e in entries)
            rows.append([Cell(group.label), number(len(entries), "{:.0f}"), *cells, Cell(first), Cell(last)])
    heads = ["network", "starts", "commit", "versions", "hardware", "data", "teacher", "first start", "last end"]
    text = (
        "Over all runs of a network. The commit is that of the working directory; changed: tracked files were not as "
        "committed. Commands are in provenance.json of each run."
    )
    return Section("provenance", "Provenance", [Part(text=text, table=Table(heads, rows))]) if rows else None


def _made_with(entry: Numbers) -> tuple[str, ...]:
    """Commit, versions, hardware, data and teacher of a start."""
    commit = "" if entry["commit"] is None else entry["commit"][:12] + ("" if entry["clean"] else " (changed)")
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    return commit, versions, entry["hardware"], entry["data"], entry["teacher"] or ""


def reproduction(groups: list[Group]) -> Section:
    """The command for each run. What made them is in the text if it is the same for all, else in a column."""
    runs = [(run, group.label) for group in groups for run in group.runs]
    versions = [_versions(run.summary) for run, _ in runs]
    same = len(set(versions)) == 1
    rows = []
    for (run, label), version in zip(runs, versions, strict=True):
        cells = [Cell(str(run.path)), Cell(label), number(run.seed, "{:.0f}"), number(run.summary.get("top1_last"))]
        rows.append([*cells, *([] if same else [Cell(version)]), Cell(run.command)])
    heads = ["run", "network", "seed", "top-1", *([] if same else ["made by"]), "command"]
    text = "NEW is a folder of your choice." + (f" All were made by {versions[0]}." if same else "")
    return Section("reproduce", "How to reproduce each number", [Part(text=text, table=Table(heads, rows))])


MADE_BY = {"hkd": "hkd", "torch": "torch", "Python": "python"}


def _versions(summary: Numbers) -> str:
    versions = ", ".join(f"{name} {summary[key]}" for name, key in MADE_BY.items() if key in summary)
    return f"{versions} on {summary.get('machine', summary.get('device'))}"
