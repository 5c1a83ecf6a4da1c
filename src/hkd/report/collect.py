"""What a report is made of, read from run folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.config import Entry
from hkd.errors import RequestError
from hkd.jobs import find_trained
from hkd.report.labels import label_of, method_label
from hkd.report.results import Comparison, Pair, Row
from hkd.runtime.run_folder import RunFolder

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: on disk.
        label: what runs that differ in seed share, as "resnet8, hkd+kd".
        asked: its configuration.
        about: what stands beside its weights.
        summary: its result.
    """

    folder: RunFolder
    label: str
    asked: Numbers
    about: Numbers
    summary: Numbers

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def seed(self) -> int:
        return int(self.asked["seed"])

    @property
    def is_student(self) -> bool:
        """Whether it was distilled, or stands for the student alone."""
        return "method" in self.asked or self.asked.get("role") == "student"

    @cached_property
    def rows(self) -> list[Numbers]:
        """The epochs of the training, without those of an initialisation."""
        return [row for row in self.folder.rows() if row["epoch"] > 0]

    @property
    def has_predictions(self) -> bool:
        """Whether it tells its prediction for each test image; runs of early versions do not."""
        return (self.path / "predictions.npz").is_file()

    @property
    def command(self) -> str:
        """What trains it again."""
        return f"hkd {'distill' if 'method' in self.asked else 'train'} --config {self.path / 'config.yaml'} --run NEW"


def find_runs(paths: Iterable[str]) -> tuple[list[Run], list[Path]]:
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
            if run.summary is not None and config.parent.resolve() not in runs:
                runs[config.parent.resolve()] = _read(run)
    if not runs:
        raise RequestError(f"runs: no finished run in {', '.join(map(str, folders))}")
    return list(runs.values()), folders


def _read(run: RunFolder) -> Run:
    found = find_trained(str(run.path), model="of a run")
    assert run.summary is not None
    label = label_of(replace(found, name=found.about.get("model", "network")))
    return Run(run, label, found.asked, found.about, run.summary)


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by label: those of a group differ in their seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def comparison_of(runs: list[Run]) -> Comparison | None:
    """The runs as a comparison, where there are several methods for one student."""
    alone: dict[str, list[Run]] = {}
    pairs: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        if "method" in run.asked:
            own = pairs.setdefault((run.asked["teacher"], run.asked["student"]), {})
            own.setdefault(method_label(run.asked), []).append(run)
        elif run.is_student:
            alone.setdefault(run.about.get("model", ""), []).append(run)
    found = []
    for (teacher, student), methods in pairs.items():
        rows = [_row("ce", alone[student])] if student in alone else []
        rows += [_row(label, own) for label, own in methods.items()]
        if len(rows) > 1:
            found.append(Pair(teacher, student, tuple(rows)))
    dataset = Counter(run.asked["dataset"] for run in runs).most_common(1)[0][0]
    return Comparison(dataset, tuple(found)) if found else None


def _row(label: str, runs: list[Run]) -> Row:
    return Row(label, Entry.parse(label).method, {run.seed: run.folder for run in runs})


def experiments(folders: list[Path], name: str) -> list[tuple[Path, Numbers]]:
    """The results of a kind of experiment in some folders: "sweep", "topology", "transfer"."""
    files = [file for folder in folders for file in sorted(folder.rglob(f"{name}.json"))]
    return [(file.parent, json.loads(file.read_text())) for file in dict.fromkeys(files)]


@dataclass(frozen=True)
class ClassAccuracy:
    """One class in a group of runs: its accuracy in percent, and what it is most often taken for."""

    name: str
    top1: float
    images: int
    mistaken_for: str
    times: int


def by_class(runs: list[Run]) -> list[ClassAccuracy]:
    """The classes of a group's test images, over all its runs; those that suffer most first."""
    predicted, label = (
        np.concatenate(parts) for parts in zip(*(run.folder.predictions() for run in runs), strict=True)
    )
    names = [str(name) for name in runs[0].about.get("classes", range(int(label.max()) + 1))]
    found = []
    for n, name in enumerate(names):
        own: NDArray[np.int64] = predicted[label == n]
        if len(own):
            others = Counter(own[own != n].tolist()).most_common(1)
            other, times = others[0] if others else (n, 0)
            top1 = 100 * float(np.mean(own == n))
            found.append(ClassAccuracy(name, top1, len(own) // len(runs), names[other] if times else "", times))
    return sorted(found, key=lambda row: row.top1)


def common_and_differing(runs: list[Run]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The fields that have one value in all runs that have them, and the values of the others, all as JSON.

    A method's settings are fields like "holistic.k", and only its runs have them.
    """
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _flat(run.asked):
            values.setdefault(name, {})[json.dumps(value)] = None
    shared = {name: next(iter(found)) for name, found in sorted(values.items()) if len(found) == 1}
    return shared, {name: list(found) for name, found in sorted(values.items()) if len(found) > 1}


def _flat(asked: Numbers) -> Iterator[tuple[str, Any]]:
    for name, value in asked.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", own) for key, own in value.items())
        elif name != "run":
            yield name, value
