"""What a report is made of, read from run folders."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hkd.errors import RequestError
from hkd.files import read_json, shown_path
from hkd.models.spec import TeacherSpec
from hkd.models.weights import read_about
from hkd.report.labels import labels
from hkd.report.topology import MEASURES
from hkd.runtime.records import (
    SEARCH,
    SWEEP,
    TRANSFER,
    Record,
    checked,
    corrupt,
    embedding_row,
    listed,
    of_record,
    text,
    whole,
)  # fmt: skip
from hkd.runtime.run_folder import RunFolder
from hkd.spec import RunSpec
from hkd.trained import Trained, teacher_of

Numbers = dict[str, Any]
Identity = tuple[str, int]
"""Key and seed: which run it is, whatever its folder."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: on disk.
        spec: its specification.
        about: the metadata of its weights; empty if the file is gone.
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
        return self.folder.file("predictions.npz").is_file()

    @cached_property
    def teachers(self) -> list[Run]:
        """The finished runs of its teachers that are still where this run read or trained them."""
        found = [self._teacher(teacher) for teacher in self.spec.teachers]
        return [run for run in found if run is not None]

    def _teacher(self, teacher: TeacherSpec) -> Run | None:
        student = Trained(str(self.spec.student.name), self.folder.weights, self.about, self.spec)
        try:
            trained = teacher_of(student, teacher)
            if trained is None or trained.spec is None:
                return None
            run = read_run(RunFolder(trained.weights.parent))
        except RequestError:  # it was moved or is corrupt; this run is shown without it
            return None
        return None if run is None or teacher.digest not in ("", f"run {run.key} {run.seed}") else run

    @property
    def command(self) -> str:
        """The command that trains it again. One that imports what the run's file names says so."""
        verb = "distill" if self.spec.method is not None else "train"
        trust = " --trust-config" if self.spec.code else ""
        return f"hkd {verb} --config {shlex.quote(str(self.path / 'config.yaml'))}{trust} --run NEW"


@dataclass(frozen=True)
class Group:
    """Runs of one key, one of each seed.

    Attributes:
        label: no other group that is shown has it.
        runs: in the order of their seeds.
        is_teacher: whether another run learnt from one of them.
    """

    label: str
    runs: tuple[Run, ...]
    is_teacher: bool

    @property
    def key(self) -> str:
        return self.runs[0].key

    @property
    def spec(self) -> RunSpec:
        return self.runs[0].spec

    def values(self, name: str) -> list[float]:
        """One number of each run that has it."""
        return [run.summary[name] for run in self.runs if isinstance(run.summary.get(name), int | float)]


def read_run(folder: RunFolder) -> Run | None:
    """A finished run; None for a folder without a result.

    Raises:
        RequestError: the folder holds something that is no run, or a corrupt file.
    """
    summary = folder.summary
    if summary is None:
        return None
    if not folder.spec.is_resolved:  # its key would have to be found by opening its data set
        raise corrupt(folder.config, "data_digest: expected that of the images of a finished run; got nothing")
    return Run(folder, folder.spec, read_about(folder.weights) if folder.weights.is_file() else {}, summary)


def find_finished(paths: Iterable[str]) -> tuple[list[Run], list[Path]]:
    """The finished runs in some folders with the runs of their teachers, wherever these are, and the folders.

    Folders are searched for runs, so the folder of a comparison or a sweep gives all of its runs.

    Raises:
        RequestError: a folder does not exist, there is no finished run, or a file of one is corrupt.
    """
    runs: dict[Path, Run] = {}
    folders = [Path(path) for path in paths]
    for folder in folders:
        if not os.path.isdir(folder):
            raise RequestError(f"runs: no folder {folder}")
        for config in sorted(folder.rglob("config.yaml")):
            if config.parent.resolve() not in runs and (run := read_run(RunFolder(config.parent))) is not None:
                runs[config.parent.resolve()] = run
    if not runs:
        raise RequestError(f"runs: no finished run in {', '.join(map(str, folders))}")
    students = list(runs.values())
    for student in students:  # grows: a teacher may have been distilled itself
        for teacher in student.teachers:
            if teacher.path.resolve() not in runs:
                runs[teacher.path.resolve()] = teacher
                students.append(teacher)
    return list(runs.values()), folders


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Runs by key: those of a group differ in their seed alone. Of two runs of one key and seed the first counts."""
    by_key: dict[str, dict[int, Run]] = {}
    teachers: set[Identity] = set()
    for run in runs:
        counted = by_key.setdefault(run.key, {}).setdefault(run.seed, run)
        if counted is not run:
            print(
                f"note: {shown_path(run.path)} is not counted: it has the specification and the seed of "
                f"{shown_path(counted.path)}",
                file=sys.stderr,
            )
        teachers |= {(teacher.key, teacher.seed) for teacher in run.teachers}
    names = labels({key: next(iter(trials.values())).spec for key, trials in by_key.items()})
    return [
        Group(
            names[key],
            tuple(trials[seed] for seed in sorted(trials)),
            any((key, seed) in teachers for seed in trials),
        )
        for key, trials in by_key.items()
    ]


_EMBEDDINGS = Record(
    {"rows": listed(of_record(embedding_row(tuple(MEASURES)))), "teacher": text(), "images": whole(),
     "neighbours": whole()},
    ("rows", "teacher", "images", "neighbours"),
)  # fmt: skip
RESULTS = {"sweep": SWEEP, "search": SEARCH, "topology": _EMBEDDINGS, "transfer": TRANSFER}
"""The files of other results than runs, without ``.json``, and what they hold."""


def results(folders: list[Path], name: str) -> Iterator[tuple[Path, Numbers]]:
    """The results of one kind of :data:`RESULTS` in some folders, each once, with their places.

    A file of that name that holds something else is skipped with a note.
    """
    files = [file for folder in folders for file in sorted(folder.rglob(f"{name}.json"))]
    for file in {file.resolve(): file for file in files}.values():
        try:
            numbers = read_json(file)
            checked(numbers, RESULTS[name], file)
        except RequestError:
            print(f"note: {shown_path(file)} is skipped: it is no result of hkd {name}", file=sys.stderr)
        else:
            yield file.parent, numbers
