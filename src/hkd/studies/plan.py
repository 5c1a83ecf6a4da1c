"""A study is a plan: specifications, which of their runs are there, and the command that trains each missing one."""

from __future__ import annotations

import os
import re
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hkd.api import teacher_spec
from hkd.config import DEFAULTS
from hkd.data import Data, open_data
from hkd.data.spec import DataSpec
from hkd.errors import RequestError
from hkd.files import read_yaml, write_text
from hkd.models.spec import TeacherSpec
from hkd.options import default_of
from hkd.parts import dry_check
from hkd.runtime.progress import duration
from hkd.runtime.run_folder import RunFolder, RunState, find_runs, set_aside
from hkd.spec import FIELDS, RECORDED, RunSpec, field_of, resolve_teacher

STUDY_FILE = "study.yaml"
"""In a study's folder: what kind of study it is."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        asked: its specification as it is asked for, with absolute paths.
        spec: the same, resolved.
        title: what it is, in words.
        needs: the training of its teacher, where that is part of the study.
    """

    asked: RunSpec
    spec: RunSpec
    title: str
    needs: PlannedRun | None = None

    @cached_property
    def identity(self) -> tuple[str, int]:
        """Key and seed: two planned runs of one identity are one run."""
        return self.spec.key(), self.spec.seed

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(self.spec.run)

    @property
    def command(self) -> list[str]:
        """The words that train it, or continue it, on any machine that sees the same paths."""
        return command_of(self.asked)


class Plan:
    """The runs of a study in a folder, each once, teachers before their students.

    A run counts as there wherever in the folder it was made, if its key and seed are those of the plan. A new one gets
    the place that the study gives it.

    Args:
        folder: of the study.
        kind: "compare" or "sweep".
        processes: that train each run together.
    """

    def __init__(self, folder: str, kind: str, *, processes: int = 1) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.kind = kind
        self.processes = processes
        self.runs: list[PlannedRun] = []
        self._by_identity: dict[tuple[str, int], PlannedRun] = {}
        self._data: dict[DataSpec, Data] = {}
        self._places: set[str] = set()

    # -- making it ----------------------------------------------------------------------------------------------------

    @cached_property
    def existing(self) -> dict[tuple[str, int], RunFolder]:
        """The runs in the folder by key and seed; finished ones before others."""
        runs: dict[tuple[str, int], RunFolder] = {}
        for run in find_runs(self.folder) if self.folder.is_dir() else ():
            try:
                identity = run.spec.key(), run.spec.seed
            except RequestError:
                continue  # a corrupt configuration is reported when its place is needed
            if identity not in runs or run.state is RunState.FINISHED:
                runs[identity] = run
        return runs

    def data(self, spec: RunSpec) -> Data:
        """The images of a specification; each data set is opened once."""
        if spec.data not in self._data:
            cache = Path(spec.runtime.image_cache or self.folder / "cache")
            self._data[spec.data] = open_data(spec.data, workers=spec.runtime.workers, cache=cache)
        return self._data[spec.data]

    def prepare(self, spec: RunSpec, place: str) -> RunSpec:
        """A specification with absolute paths, the study's image cache, and its place in the folder."""
        data = replace(spec.data, data_root=os.path.abspath(spec.data.data_root))
        kind, colon, path = data.dataset.partition(":")
        if kind == "folder" and colon:
            data = replace(data, dataset=f"folder:{os.path.abspath(os.path.expanduser(path))}")
        cache = os.path.abspath(spec.runtime.image_cache or self.folder / "cache")
        runtime = replace(spec.runtime, run=str(self.folder / place), image_cache=cache)
        teacher = spec.teacher
        if teacher is not None and teacher.checkpoint is not None:
            teacher = replace(teacher, checkpoint=os.path.abspath(teacher.checkpoint))
        return replace(spec, data=data, runtime=runtime, teacher=teacher)

    def teacher(self, spec: RunSpec, seed: int) -> PlannedRun | None:
        """The training of a specification's teacher, planned once; None where its weights are given."""
        assert spec.teacher is not None
        if spec.teacher.checkpoint is not None or _comes_trained(spec):
            return None
        named = resolve_teacher(spec.teacher)
        training = teacher_spec(replace(spec, teacher=named), Path("-"), seed)
        return self.add(training, f"teachers/{named.name}", f"teacher {named.name}")

    def add(self, spec: RunSpec, place: str, title: str, needs: PlannedRun | None = None) -> PlannedRun:
        """Plans a run, unless one of its key and seed is planned already, which is returned.

        Args:
            spec: of the run.
            place: where in the folder a new run goes.
            title: what it is, in words.
            needs: the training of its teacher.

        Raises:
            RequestError: the place holds another run.
        """
        asked = self.prepare(spec, file_path(place))
        if needs is not None and asked.teacher is not None:
            key, seed = needs.identity
            known = TeacherSpec(name=needs.spec.student.name, checkpoint=needs.spec.run)
            asked = replace(asked, teacher=known)
            resolved = replace(asked, teacher=replace(known, digest=f"run {key} {seed}")).resolved(self.data(asked))
        else:
            resolved = asked.resolved(self.data(asked))
        planned = PlannedRun(asked, resolved, title, needs)
        if planned.identity in self._by_identity:
            return self._by_identity[planned.identity]
        if planned.identity in self.existing:
            place = str(self.existing[planned.identity].path)
        elif str(asked.run) in self._places:
            place = f"{asked.run}-{planned.identity[0][:6]}"
        else:
            place = asked.run
            RunFolder(place).check(resolved)
        planned = PlannedRun(_moved(asked, place), _moved(resolved, place), title, needs)
        self._places.add(place)
        self._by_identity[planned.identity] = planned
        self.runs.append(planned)
        return planned

    def dry_check(self, spec: RunSpec) -> None:
        """Raises what training the specification would raise at its start, as far as names and shapes tell."""
        dry_check(spec, self.data(spec))

    # -- the folder ---------------------------------------------------------------------------------------------------

    def check_folder(self) -> None:
        """Raises :class:`RequestError` where the folder is something else than a study, or a folder of runs."""
        folder = self.folder
        if not folder.exists() or self.is_study:
            return
        if not folder.is_dir() or (folder / "config.yaml").is_file():
            raise RequestError(f"run: {folder} exists and is no study; name another with --run")
        if any(folder.iterdir()) and not self.existing:
            raise RequestError(f"run: {folder} exists and is no {self.kind}; name another with --run")

    @property
    def is_study(self) -> bool:
        names = {"compare": "comparison.json", "sweep": "sweep.json"}  # version 0.1 wrote no more
        return (self.folder / STUDY_FILE).is_file() or (self.folder / names[self.kind]).is_file()

    def begin(self, *, fresh: bool) -> None:
        """Makes the folder, or with ``fresh`` keeps what is there under another name and starts over.

        Raises:
            RequestError: another process is training one of the runs that would be set aside.
        """
        if fresh and self.folder.exists() and any(self.folder.iterdir()):
            if locked := [run for run in find_runs(self.folder) if run.is_locked]:
                raise RequestError(f"fresh: another process is working in {locked[0].path}; stop it first")
            set_aside(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / STUDY_FILE).is_file():
            write_text(self.folder / STUDY_FILE, f"kind: {self.kind}\n")
        elif (kind := read_yaml(self.folder / STUDY_FILE).get("kind")) != self.kind:
            raise RequestError(f"run: {self.folder} is the folder of a {kind}; name another with --run")

    # -- what it says -------------------------------------------------------------------------------------------------

    def missing(self) -> list[PlannedRun]:
        """The runs without a result."""
        return [run for run in self.runs if run.folder.state is not RunState.FINISHED]

    def describe(self) -> Iterator[str]:
        """The plan as lines: each run's state, title and command, and what it will take."""
        for run in self.runs:
            yield f"{run.folder.state:<8} {run.title}"
            yield f"         {shlex.join(launched(run.command, self.processes))}"
        yield self.estimate()

    def estimate(self) -> str:
        """What is left to do, from what the finished runs took."""
        finished = [run for run in self.runs if run.folder.state is RunState.FINISHED]
        left = self.missing()
        words = f"{len(self.runs)} runs: {len(finished)} finished, {len(left)} to go"
        if not finished or not left:
            return words + ("" if not left else "; an estimate needs a finished run")
        seconds = [
            run.folder.summary["seconds"] / run.spec.optimisation.epochs for run in finished if run.folder.summary
        ]
        size = statistics.fmean(_size(run.folder.path) for run in finished)
        each = statistics.fmean(seconds)
        total = sum(each * run.spec.optimisation.epochs for run in left)
        return f"{words}; about {duration(total)} one after another, {len(left) * size / 1e6:,.0f} MB of disk"


def _comes_trained(spec: RunSpec) -> bool:
    """Whether a library's weights include the classifier of the very data set."""
    return spec.teacher is not None and spec.teacher.pretrained and spec.data.dataset == "imagenet"


def _moved(spec: RunSpec, run: str) -> RunSpec:
    return replace(spec, runtime=replace(spec.runtime, run=run))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def command_of(spec: RunSpec) -> list[str]:
    """A specification as words of the command line: what differs from the defaults."""
    command = "train" if spec.method is None else "distill"
    words = [sys.executable, "-m", "hkd", command]
    flat = spec.to_flat()
    for name, value in flat.items():
        if name in RECORDED or name == "format":
            continue
        if isinstance(value, dict):
            continue
        flag, default = f"--{name.replace('_', '-')}", _default(name, command)
        if value == default or (isinstance(value, list) and tuple(value) == default):
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    if spec.method is not None and spec.method.settings is not None:
        from hkd.methods import methods
        from hkd.methods.create import method_config

        prefix, usual = methods[spec.method.name].settings, method_config(spec.method.name, {})
        for name, value in vars(spec.method.settings).items():
            if value != getattr(usual, name):
                flag = f"--{prefix}.{name.replace('_', '-')}"
                if isinstance(value, bool):
                    words.append(flag if value else f"--{'no-'}{flag[2:]}")
                else:
                    words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def _default(name: str, command: str) -> Any:
    part, attribute = FIELDS[name]
    return DEFAULTS[command].get(name, default_of(field_of(part, attribute)))


def launched(command: list[str], processes: int) -> list[str]:
    """A command as a launcher starts it in several processes."""
    if processes == 1:
        return command
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "hkd", "--"]
    return [command[0], *launcher, *command[3:]]


def file_path(text: str) -> str:
    """A place in a study's folder: names without what file systems and shells trip over."""
    return "/".join(file_name(part) for part in text.split("/"))


def file_name(text: str) -> str:
    """A name without what file systems and shells trip over."""
    return re.sub(r"[^\w.+=,-]", "_", text).strip("_")[:120]


def each_seed(first: int, trials: int) -> Iterable[int]:
    return range(first, first + trials)
