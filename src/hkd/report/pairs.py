"""Runs as comparisons: which of them may be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from hkd.options import key_values
from hkd.report.collect import Group
from hkd.report.labels import labels, setting
from hkd.report.results import Comparison, Pair, Row
from hkd.spec import PLUS_KD, RunSpec
from hkd.trained import method_label


def comparisons(groups: Iterable[Group]) -> list[tuple[str, Comparison]]:
    """The runs as comparisons of one pair of networks each, wherever there are several methods.

    Runs are compared if they differ in nothing but the method and the seed: they saw the same images for the same
    epochs at the same learning rate, and learnt from the same teacher. The student alone, under the same setting, is a
    method, too. Runs without predictions take no part.

    Returns:
        For each a heading, "TEACHER → STUDENT" with what differs among those that are returned, and the comparison.
    """
    alone: dict[str, Group] = {}
    pairs: dict[str, list[Group]] = {}
    for group in (_with_predictions(group) for group in groups):
        if group.runs and group.spec.teacher is None:
            alone[_digest(group.spec, teacher=False)] = group
        elif group.runs:
            pairs.setdefault(_digest(group.spec, teacher=True), []).append(group)
    rows = {key: _rows(alone.get(_digest(taught[0].spec, teacher=False)), taught) for key, taught in pairs.items()}
    specs = {key: replace(taught[0].spec, method=None) for key, taught in pairs.items() if len(rows[key]) > 1}
    headings = labels(specs, _names)
    return [(headings[key], _comparison(spec, rows[key])) for key, spec in specs.items()]


def _with_predictions(group: Group) -> Group:
    return replace(group, runs=tuple(run for run in group.runs if run.has_predictions))


def _digest(spec: RunSpec, *, teacher: bool) -> str:
    """Of everything that methods must share to be compared; without the teacher, that the student alone must share."""
    values = [*setting(spec), ("lr", spec.optimisation.lr), *key_values(spec.student)]
    if teacher and spec.teacher is not None:
        taught = spec.teacher
        values += [("teacher", taught.digest)] if taught.digest else key_values(taught)
        values += [("teacher", other.digest) for other in spec.more_teachers]
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _names(spec: RunSpec) -> str:
    return f"{spec.teacher_names} → {spec.student.name}"


def _comparison(spec: RunSpec, rows: list[Row]) -> Comparison:
    pair = Pair(spec.teacher_names, str(spec.student.name), tuple(rows))
    return Comparison(spec.data.dataset, (pair,))


def _rows(alone: Group | None, groups: list[Group]) -> list[Row]:
    """Lines as a comparison writes them; a line that two groups share is replaced by the ends of their labels."""
    lines = [method_label(group.spec) for group in groups]
    names = [
        line if lines.count(line) == 1 else group.label.partition(", ")[2]
        for line, group in zip(lines, groups, strict=True)
    ]
    rows = [] if alone is None else [_row("ce", "ce", alone)]
    return rows + [_row(name, line, group) for name, line, group in zip(names, lines, groups, strict=True)]


def _row(name: str, line: str, group: Group) -> Row:
    method = "ce" if group.spec.method is None else group.spec.method.name
    plus = PLUS_KD if line.endswith(PLUS_KD) else ""
    return Row(name, method + plus, {run.seed: run.folder for run in group.runs}, spec=group.spec)
