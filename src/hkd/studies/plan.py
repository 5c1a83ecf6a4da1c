"""A study is a plan: specifications, which of their runs exist, and the command that trains each missing one."""

from __future__ import annotations

import copy
import os
import re
import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from hkd.api import teacher_spec
from hkd.data import ArrayDataset, Data, Dataset, open_data
from hkd.data.load import WITH_PATH
from hkd.data.spec import DataSpec
from hkd.data.unlabelled import STL10
from hkd.errors import RequestError
from hkd.files import PARTIAL, inside, read_yaml, write_text
from hkd.models.spec import TeacherSpec
from hkd.options import shown
from hkd.parts import comes_trained, dry_check
from hkd.runtime.progress import duration
from hkd.runtime.run_folder import RunFolder, RunState, find_runs, set_aside
from hkd.spec import RunSpec, resolve_teacher
from hkd.studies.claims import any_claimed
from hkd.studies.command_line import command_of
from hkd.studies.planned_run import Identity, PlannedRun

STUDY_FILE = "study.yaml"
"""In a study's folder: what kind of study it is."""
KINDS = {"compare": "comparison", "sweep": "sweep", "search": "search"}
TEACHER_CACHE = "teacher-cache"
"""In a study's folder: the tables of its teachers' outputs."""
IMAGE_CACHE = "cache"


class Plan:
    """The runs of a study in a folder, each once, teachers before their students.

    A run exists wherever in the folder it was made, if its key and seed are those of the plan. A new one gets the place
    that the study gives it.

    Args:
        folder: of the study.
        kind: one of :data:`KINDS`.
        processes: that train each run together.
        fresh: start over; what the folder holds is set aside by :meth:`begin`.

    Raises:
        RequestError: the folder holds something other than runs, or a study of another kind.
    """

    def __init__(self, folder: str, kind: str, *, processes: int = 1, fresh: bool = False) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.kind = kind
        self.processes = processes
        self.fresh = fresh
        self.runs: list[PlannedRun] = []
        self._by_identity: dict[Identity, PlannedRun] = {}
        self._data: dict[tuple[DataSpec, str | None], Data] = {}
        self._places: set[Path] = set()
        self._costs: dict[Identity, tuple[float, float]] = {}
        self._check_folder()

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _check_folder(self) -> None:
        folder, noun = self.folder, KINDS[self.kind]
        if inside(folder, STUDY_FILE).is_file():
            kind = read_yaml(folder / STUDY_FILE).get("kind")
            if kind != self.kind:
                what = f"a {KINDS[str(kind)]}" if str(kind) in KINDS else shown(kind)
                raise RequestError(f"run: {folder} is the folder of {what}; name another with --run")
        elif folder.is_dir():
            is_run = (folder / "config.yaml").is_file()
            foreign = [f for f in folder.iterdir() if f.name != IMAGE_CACHE and f.suffix != PARTIAL]
            if is_run or (foreign and not find_runs(folder)):
                raise RequestError(f"run: {folder} exists and is no {noun}; name another with --run")
        elif folder.exists():
            raise RequestError(f"run: {folder} exists and is no {noun}; name another with --run")

    @cached_property
    def existing(self) -> dict[Identity, list[RunFolder]]:
        """The runs in the folder by key and seed."""
        runs = defaultdict(list)
        for run in () if self.fresh or not self.folder.is_dir() else find_runs(self.folder):
            try:
                spec = run.spec
            except RequestError:
                continue  # a corrupt configuration is reported when its place is needed
            if spec.is_resolved:  # a recipe is not
                runs[spec.key(), spec.seed].append(run)
        return runs

    def begin(self) -> None:
        """Makes the folder; with ``fresh`` what is there is kept under another name.

        Raises:
            RequestError: another process is training one of the runs that would be set aside.
        """
        if self.fresh and self.folder.exists() and any(self.folder.iterdir()):
            if locked := [str(run.path) for run in find_runs(self.folder) if run.is_locked]:
                raise RequestError(f"fresh: another process is working in {locked[0]}; stop it first")
            if any_claimed(self.folder):
                raise RequestError(f"fresh: another process is working in {self.folder}; stop it first")
            set_aside(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / STUDY_FILE).is_file():
            write_text(self.folder / STUDY_FILE, f"kind: {self.kind}\n")

    # -- the runs -----------------------------------------------------------------------------------------------------

    def data(self, spec: RunSpec) -> Data:
        """The data set of a specification, without its pixels; each is opened once.

        Args:
            spec: with absolute paths.
        """
        asked = (spec.data, spec.unlabelled)
        if asked not in self._data:
            assert spec.runtime.image_cache is not None
            cache = Path(spec.runtime.image_cache)
            data = open_data(spec.data, unlabelled=spec.unlabelled, workers=spec.runtime.workers, cache=cache)
            self._data[asked] = without_pixels(data)
        return self._data[asked]

    def dry_check(self, spec: RunSpec) -> None:
        """Raises what training the specification would raise at its start, as far as names and shapes tell."""
        spec = self._absolute(spec)
        dry_check(spec, self.data(spec))

    def key_of(self, spec: RunSpec) -> str:
        """The key of a specification, apart from its teacher's weights."""
        spec = self._absolute(spec)
        return spec.resolved(self.data(spec)).key()

    def add_teacher(self, spec: RunSpec, seed: int, *place: str) -> PlannedRun | None:
        """Plans the training of a specification's teacher; None where its weights are given.

        Args:
            place: folders above that of the teachers.
        """
        spec = self._absolute(spec)  # now: what the teacher takes over is not relative to a run folder
        assert spec.teacher is not None
        if comes_trained(spec, self.data(spec)):
            return None
        teacher = resolve_teacher(spec.teacher)
        training = teacher_spec(replace(spec, teacher=teacher), Path("-"), seed)
        return self.add(training, (*place, "teachers", str(teacher.name)), f"teacher {teacher.name}")

    def add(self, spec: RunSpec, place: tuple[str, ...], title: str, teacher: PlannedRun | None = None) -> PlannedRun:
        """Plans a run, unless one of its key and seed is planned already, which is returned.

        Args:
            spec: of the run.
            place: where in the folder a new run goes, a name for each level.
            title: what it is, in words.
            teacher: the training of its teacher.

        Raises:
            RequestError: the place holds another run.
        """
        spec = self._absolute(spec)
        if teacher is None:
            resolved = spec.resolved(self.data(spec))
        else:
            key, seed = teacher.identity
            known = TeacherSpec(name=teacher.spec.student.name, checkpoint=teacher.spec.run)
            spec = replace(spec, teacher=known)
            resolved = replace(spec, teacher=replace(known, digest=f"run {key} {seed}")).resolved(self.data(spec))
        identity = resolved.key(), resolved.seed
        if identity not in self._by_identity:
            path = str(self._place_of(resolved, identity, inside(self.folder, *map(file_name, place))))
            run = PlannedRun(_moved(spec, path), _moved(resolved, path), title, teacher)
            self._places.add(Path(path))
            self._by_identity[identity] = run
            self.runs.append(run)
        return self._by_identity[identity]

    def _absolute(self, spec: RunSpec) -> RunSpec:
        """A specification with absolute paths and the study's image cache."""
        data = replace(spec.data, data_root=_absolute(spec.data.data_root))
        kind, colon, path = data.dataset.partition(":")
        if kind in WITH_PATH and colon:
            data = replace(data, dataset=f"{kind}:{_absolute(path)}")
        cache = os.path.abspath(spec.runtime.image_cache or inside(self.folder, IMAGE_CACHE))
        teacher, student = spec.teacher, spec.student
        if student.weights is not None:
            student = replace(student, weights=os.path.abspath(student.weights))
        if teacher is not None:
            checkpoint, weights = (place and os.path.abspath(place) for place in (teacher.checkpoint, teacher.weights))
            teacher = replace(teacher, checkpoint=checkpoint, weights=weights)
        table = spec.runtime.teacher_cache
        if teacher is None or spec.method is None:
            table = "off"
        elif table != "off":
            table = str(inside(self.folder, TEACHER_CACHE)) if table == "auto" else os.path.abspath(table)
        runtime = replace(spec.runtime, image_cache=cache, teacher_cache=table)
        method = spec.method
        if method is not None and method.unlabelled not in (None, STL10):
            method = replace(method, unlabelled=_absolute(str(method.unlabelled).removeprefix("folder:")))
        return replace(spec, data=data, runtime=runtime, student=student, teacher=teacher, method=method)

    def _place_of(self, resolved: RunSpec, identity: Identity, usual: Path) -> Path:
        """Where a run is, or where it goes: a finished one before others, one in its usual place before others."""
        if runs := self.existing.get(identity):
            run = min(runs, key=lambda run: (run.state is not RunState.FINISHED, run.path != usual))
            try:
                _ = run.summary
            except RequestError as error:
                words = str(error).removesuffix("start over with --fresh")
                raise RequestError(f"{words}delete {run.path} to train it again") from error
            return run.path
        if usual in self._places:
            return usual.with_name(f"{usual.name}-{identity[0][:6]}")
        place = RunFolder(usual)
        if not self.fresh:
            place.check(resolved)
            if place.begun and place.spec.data.revision == 0:
                raise RequestError(
                    f"run: {usual} holds a run of hkd 0.1, which does not belong together with new ones; name another "
                    "folder with --run, or start over with --fresh"
                )
        return usual

    # -- what it says -------------------------------------------------------------------------------------------------

    def command(self, run: PlannedRun) -> list[str]:
        """The words that train a run, or continue it, on any machine that sees the same paths."""
        return command_of(run.spec, self.processes)

    def describe(self) -> Iterator[str]:
        """The plan as lines: each run's state, title and command, and what is left to do."""
        for run in self.runs:
            yield f"{RunState.MISSING if self.fresh else run.state:<8} {run.title}"
            yield f"         {shlex.join(self.command(run))}"
        yield self.estimate()

    def estimate(self) -> str:
        """What is left to do, from what finished runs of the same network took, or else any."""
        states = {run.identity: RunState.MISSING if self.fresh else run.state for run in self.runs}
        failed, counts = "", Counter(states.values())
        if counts[RunState.FAILED]:
            failed = f", {counts[RunState.FAILED]} failed"
        left = [run for run in self.runs if states[run.identity] in (RunState.MISSING, RunState.BEGUN)]
        words = f"{len(self.runs)} runs: {counts[RunState.FINISHED]} finished{failed}, {len(left)} to go"
        if not left:
            return words
        costs = defaultdict(list)
        for run in self.runs:
            if states[run.identity] is RunState.FINISHED:
                costs[run.resolved.student.name].append(self._cost(run))
        if not costs:
            return f"{words}; an estimate needs a finished run"
        usual = _mean([cost for group in costs.values() for cost in group])
        means = {name: _mean(group) for name, group in costs.items()}
        seconds = sum(run.resolved.optimisation.epochs * means.get(run.resolved.student.name, usual)[0] for run in left)
        size = sum(means.get(run.resolved.student.name, usual)[1] for run in left)
        return f"{words}; about {duration(seconds)} one after another, {size / 1e6:,.0f} MB of disk"

    def _cost(self, run: PlannedRun) -> tuple[float, float]:
        """Seconds an epoch and bytes on disk of a finished run."""
        if run.identity not in self._costs:
            files = [file for file in run.folder.path.rglob("*") if file.is_file() and not file.is_symlink()]
            summary = run.folder.summary or {}
            epochs = summary.get("epochs") or run.resolved.optimisation.epochs  # it may have stopped early
            seconds = summary.get("seconds", 0.0) / epochs
            self._costs[run.identity] = seconds, sum(file.stat().st_size for file in files)
        return self._costs[run.identity]


def _mean(costs: list[tuple[float, float]]) -> tuple[float, float]:
    seconds, sizes = zip(*costs, strict=True)
    return statistics.fmean(seconds), statistics.fmean(sizes)


def without_pixels(data: Data) -> Data:
    """A data set's names, labels and digest; a study need not keep the images of its runs in memory."""

    def emptied(part: Dataset) -> Dataset:
        part = copy.copy(part)
        if isinstance(part, ArrayDataset):
            part.images = part.images[:0].clone()
        return part

    light = replace(data, train=emptied(data.train), test=emptied(data.test))
    light.__dict__["digest"] = data.digest  # computed once, from the pixels
    return light


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _moved(spec: RunSpec, run: str) -> RunSpec:
    return replace(spec, runtime=replace(spec.runtime, run=run))


def file_name(text: str) -> str:
    """A name without what file systems and shells trip over."""
    return re.sub(r"[^\w.+=,-]", "_", text).strip("_.")[:120]
