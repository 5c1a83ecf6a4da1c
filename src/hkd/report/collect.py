"""What a report is made of, read from run folders."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import RequestError
from hkd.files import read_json
from hkd.models.weights import read_about
from hkd.report.labels import labels, setting, setting_words
from hkd.report.results import Comparison, Pair, Row
from hkd.runtime.run_folder import RunFolder
from hkd.spec import RunSpec
from hkd.trained import method_label

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: on disk.
        spec: its specification.
        about: what stands beside its weights.
        summary: its result.
    """

    folder: RunFolder
    spec: RunSpec
    about: Numbers
    summary: Numbers

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def seed(self) -> int:
        return self.spec.seed

    @cached_property
    def key(self) -> str:
        return self.spec.key()

    @cached_property
    def rows(self) -> list[Numbers]:
        """The epochs of the training, without those of an initialisation."""
        return [row for row in self.folder.rows() if row["epoch"] > 0]

    @property
    def has_predictions(self) -> bool:
        """Whether it has its prediction for each test image; runs of early versions do not."""
        return (self.path / "predictions.npz").is_file()

    @property
    def command(self) -> str:
        """What trains it again."""
        verb = "distill" if self.spec.method is not None else "train"
        return f"hkd {verb} --config {self.path / 'config.yaml'} --run NEW"


@dataclass(frozen=True)
class Group:
    """Runs of one key, one of each seed.

    Attributes:
        label: what the group is called among those that are shown.
        runs: in the order of their seeds.
        is_teacher: whether another run learnt from one of them.
    """

    label: str
    runs: tuple[Run, ...]
    is_teacher: bool

    @property
    def spec(self) -> RunSpec:
        return self.runs[0].spec

    def values(self, name: str) -> list[float]:
        """One number of each run that has it."""
        return [run.summary[name] for run in self.runs if isinstance(run.summary.get(name), int | float)]


def find_finished(paths: Iterable[str]) -> tuple[list[Run], list[Path]]:
    """The finished runs in some folders, and the folders looked at.

    A folder that is no run is searched for runs, so the folder of a comparison or a sweep stands for all of its own.
    """
    runs: dict[Path, Run] = {}
    folders = [Path(path) for path in paths]
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"runs: no folder {folder}")
        for config in sorted(folder.rglob("config.yaml")):
            run = RunFolder(config.parent)
            if config.parent.resolve() not in runs and (summary := run.summary) is not None:
                runs[config.parent.resolve()] = Run(run, run.spec, _about(run), summary)
    if not runs:
        raise RequestError(f"runs: no finished run in {', '.join(map(str, folders))}")
    return list(runs.values()), folders


def _about(run: RunFolder) -> Numbers:
    return read_about(run.weights) if run.weights.is_file() else {}


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Runs by key: those of a group differ in their seed alone. Of two runs of one key and seed the first counts."""
    by_key: dict[str, dict[int, Run]] = {}
    teachers: set[tuple[str, int]] = set()
    listed = list(runs)
    for run in listed:
        own = by_key.setdefault(run.key, {})
        if run.seed in own:
            print(f"hkd: {run.path} repeats {own[run.seed].path}, which counts", file=sys.stderr)
        own.setdefault(run.seed, run)
        teachers.update(_teacher_of(run))
    names = labels({key: next(iter(own.values())).spec for key, own in by_key.items()})
    inside = {run.path.resolve() / "teacher" for run in listed if run.spec.teacher is not None}
    return [
        Group(
            names[key],
            tuple(own[seed] for seed in sorted(own)),
            any((key, seed) in teachers or run.path.resolve() in inside for seed, run in own.items()),
        )
        for key, own in by_key.items()
    ]


def _teacher_of(run: Run) -> Iterator[tuple[str, int]]:
    """Key and seed of the run whose network taught, where it was one."""
    words = run.spec.teacher.digest.split() if run.spec.teacher is not None else []
    if len(words) == 3 and words[0] == "run" and words[2].isdigit():
        yield words[1], int(words[2])


def comparisons(runs: Iterable[Run]) -> list[tuple[str, Comparison]]:
    """The runs as comparisons, one for each setting in which there are several methods for one student.

    Runs are compared only where they saw the same images for the same epochs: everything but networks and methods is
    the same. A setting is named by what differs among those that are shown.
    """
    settings: dict[Any, list[Group]] = {}
    for group in grouped(run for run in runs if run.has_predictions):
        settings.setdefault(setting(group.spec), []).append(group)
    found = [(own[0].spec, made) for own in settings.values() if (made := _comparison(own)) is not None]
    return list(zip(setting_words(spec for spec, _ in found), (made for _, made in found), strict=True))


def _comparison(groups: list[Group]) -> Comparison | None:
    alone = {group.spec.student.name: group for group in groups if group.spec.method is None and not group.is_teacher}
    pairs: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        if group.spec.teacher is not None:
            pair = (str(group.spec.teacher.name), str(group.spec.student.name), group.spec.teacher.digest)
            pairs.setdefault(pair, []).append(group)
    found = []
    for (teacher, student, _), own in pairs.items():
        names = _row_names(own)
        rows = [_row("ce", alone[student])] if student in alone else []
        rows += [_row(name, group) for name, group in zip(names, own, strict=True)]
        if len(rows) > 1:
            found.append(Pair(teacher, student, tuple(rows)))
    return Comparison(groups[0].spec.data.dataset, tuple(found)) if found else None


def _row_names(groups: list[Group]) -> list[str]:
    """Lines as a comparison writes them; what differs beside the method is added where two would be the same."""
    names = [method_label(group.spec) for group in groups]
    return [
        name if names.count(name) == 1 else group.label.partition(", ")[2]
        for name, group in zip(names, groups, strict=True)
    ]


def _row(name: str, group: Group) -> Row:
    method = "ce" if group.spec.method is None else group.spec.method.name
    plus = "+kd" if name.endswith("+kd") else ""
    return Row(name, method + plus, {run.seed: run.folder for run in group.runs})


def experiments(folders: list[Path], name: str) -> list[tuple[Path, Numbers]]:
    """The results of a kind of experiment in some folders: "sweep", "topology", "transfer"."""
    files = [file for folder in folders for file in sorted(folder.rglob(f"{name}.json"))]
    return [(file.parent, read_json(file)) for file in dict.fromkeys(files)]


@dataclass(frozen=True)
class ClassAccuracy:
    """One class in a group of runs: its accuracy in percent, and what it is most often taken for."""

    name: str
    top1: float
    images: int
    mistaken_for: str
    times: int


def by_class(runs: Iterable[Run]) -> list[ClassAccuracy]:
    """The classes of a group's test images, over all its runs; those that suffer most first."""
    listed = list(runs)
    parts = zip(*(run.folder.predictions() for run in listed), strict=True)
    predicted, label = (np.concatenate(part) for part in parts)
    names = [str(name) for name in listed[0].about.get("classes", range(int(label.max()) + 1))]
    found = []
    for n, name in enumerate(names):
        own: NDArray[np.int64] = predicted[label == n]
        if len(own):
            others = Counter(own[own != n].tolist()).most_common(1)
            other, times = others[0] if others else (n, 0)
            top1 = 100 * float(np.mean(own == n))
            mistaken = names[other] if times and other < len(names) else ""
            found.append(ClassAccuracy(name, top1, len(own) // len(listed), mistaken, times))
    return sorted(found, key=lambda row: row.top1)


def common_and_differing(runs: list[Run]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The fields that have one value in all runs that have them, and the values of the others, all as JSON.

    A method's settings are fields like "holistic.k", and only its runs have them.
    """
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _flat(run.spec.to_flat()):
            values.setdefault(name, {})[json.dumps(value)] = None
    shared = {name: next(iter(found)) for name, found in sorted(values.items()) if len(found) == 1}
    return shared, {name: list(found) for name, found in sorted(values.items()) if len(found) > 1}


def _flat(values: Numbers) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", own) for key, own in value.items())
        elif name != "run":
            yield name, value
