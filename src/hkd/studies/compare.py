"""Several methods between the same networks, over several trials: every missing run once, and the tables."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.config import CompareConfig, DistillConfig, Entry, TrainConfig
from hkd.errors import DivergedError, IncompatibleError, RequestError, TrainingError
from hkd.jobs import Data, check_continuation, check_request, distill, open_data, train
from hkd.report.labels import file_name
from hkd.report.results import Comparison, Pair, Row
from hkd.report.tables import pair_table, write
from hkd.runtime.progress import duration
from hkd.runtime.run_folder import RunFolder, set_aside


@dataclass(frozen=True)
class Piece:
    """One run of a comparison: a network trained on labels alone, or a distillation."""

    config: TrainConfig
    told: str

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.config.run)

    def do(self, data: Data) -> None:
        """Trains, or continues.

        Raises:
            DivergedError: its folder must go before it can be tried again.
            TrainingError: the machine failed it.
            RequestError: the folder is corrupt.
        """
        print(self.told, file=sys.stderr, flush=True)
        try:
            self._train(data)
        except (TrainingError, RequestError) as error:
            # What starts a single run over would start the whole comparison over.
            advice = f"delete {self.config.run} to train it again"
            raise type(error)(re.sub(r"start over with --fresh", advice, str(error))) from error

    def _train(self, data: Data) -> None:
        if isinstance(self.config, DistillConfig):
            distill(self.config, data=data)
        else:
            train(self.config, data=data)


def compare(config: CompareConfig, *, fresh: bool = False) -> Comparison:
    """Trains what is missing of a comparison and writes its tables.

    In ``config.run``, ``teachers/NAME``, ``alone/STUDENT-SEED`` and ``TEACHER-STUDENT/METHOD-SEED`` are run folders;
    ``comparison.md``, ``.csv`` and ``.json`` the tables, rewritten after every run. Finished runs are read, unfinished
    ones continued. A run that diverges is told in the table and does not stop the others.

    Args:
        config: what to compare on what, and how.
        fresh: start over; what the folder holds is kept under another name.

    Raises:
        RequestError: the request is wrong, which is found before anything is trained.
        TrainingError: a teacher diverged.
    """
    config.check()
    folder = Path(config.run)
    ours = (folder / "comparison.json").is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"run: {folder} exists and is no comparison; name another with --run")
    data = open_data(config)
    plan = _Plan(config, data)
    if fresh and ours:
        set_aside(folder)
    pieces = list(plan.pieces())
    for piece in [*plan.teachers(), *pieces]:
        if piece.run.begun:
            check_continuation(piece.config, data)
    _show(plan.comparison(), folder, f"{len(pieces)} runs")
    for teacher in plan.teachers():
        if teacher.run.summary is None:
            teacher.do(data)
    _train_missing(plan, pieces, folder)
    comparison = plan.comparison()
    _show(comparison, folder, "done" if not plan.failed else f"{len(plan.failed)} runs failed")
    return comparison


def _train_missing(plan: _Plan, pieces: list[Piece], folder: Path) -> None:
    started, trained = time.monotonic(), 0
    for number, piece in enumerate(pieces, 1):
        if piece.run.summary is not None:
            continue
        print(f"\n[{number}/{len(pieces)}]", end=" ", file=sys.stderr)
        try:
            piece.do(plan.data)
        except DivergedError as error:
            print(f"hkd: {piece.told}: {error}", file=sys.stderr, flush=True)
            plan.failed.append(piece.config.run)
        trained += 1
        missing = sum(piece.run.summary is None for piece in pieces[number:])
        left = (time.monotonic() - started) / trained * missing
        _show(plan.comparison(), folder, f"{missing} of {len(pieces)} runs to go, {duration(left)}")


class _Plan:
    """Which runs a comparison is made of."""

    def __init__(self, config: CompareConfig, data: Data) -> None:
        self.config = config
        self.data = data
        self.failed: list[str] = []
        self.seeds = range(config.seed, config.seed + config.trials)
        self.untrained: set[str] = set()
        self.impossible = {
            (pair, entry.label): str(reason)
            for pair in config.named_pairs
            for entry in config.entries
            if (reason := self._obstacle(pair, entry)) is not None
        }

    def _obstacle(self, pair: tuple[str, str], entry: Entry) -> IncompatibleError | None:
        """Why a method cannot work between two networks, if so. A wrong request raises."""
        asked = self._asked(pair, entry, self.config.seed)
        if isinstance(asked, DistillConfig):  # a teacher that is still to be trained has no file to look at
            asked = dataclasses.replace(asked, teacher_checkpoint=self.config.teacher_checkpoints.get(pair[0]))
        try:
            if check_request(asked, self.data):
                self.untrained.add(pair[0])
        except IncompatibleError as error:
            print(f"hkd: {pair[0]} -> {pair[1]}: {error}", file=sys.stderr)
            return error
        return None

    def teachers(self) -> Iterator[Piece]:
        """The teachers that must be trained first, each once."""
        for teacher in dict.fromkeys(teacher for teacher, _ in self.config.named_pairs if teacher in self.untrained):
            yield Piece(self._train(teacher, self.config.seed, "teacher"), f"teacher {teacher}")

    def pieces(self) -> Iterator[Piece]:
        """The students' runs, each once, trial after trial, so that an interrupted comparison holds whole ones."""
        for seed in self.seeds:
            done = set()
            for teacher, student in self.config.named_pairs:
                for entry in self.config.entries:
                    asked = self._asked((teacher, student), entry, seed)
                    if ((teacher, student), entry.label) not in self.impossible and asked.run not in done:
                        done.add(asked.run)
                        alone = entry.method == "ce"
                        told = f"{student} alone" if alone else f"{teacher} -> {student}, {entry.label}"
                        yield Piece(asked, f"{told}, seed {seed}")

    def comparison(self) -> Comparison:
        """What the run folders say so far."""
        config = self.config
        pairs = []
        for teacher, student in config.named_pairs:
            rows = []
            for entry in config.entries:
                runs = {s: RunFolder(self._asked((teacher, student), entry, s).run) for s in self.seeds}
                note = "cannot work here" if ((teacher, student), entry.label) in self.impossible else ""
                if any(str(run.path) in self.failed for run in runs.values()):
                    note = "diverged"
                rows.append(Row(entry.label, entry.method, runs, note))
            pairs.append(Pair(teacher, student, tuple(rows)))
        return Comparison(config.dataset, tuple(pairs), config.baseline, tuple(self._protocol()), tuple(self.failed))

    def _protocol(self) -> Iterator[str]:
        config, train, test = self.config, self.data.train, self.data.test
        yield (
            f"{config.dataset}: {train.info.num_classes} classes, {len(train):,} training and {len(test):,} test images"
        )
        falls = ", ".join(str(round(m * config.epochs)) for m in config.milestones)
        yield (
            f"{config.epochs} epochs, batch {config.batch_size}, learning rate {config.lr}"
            f"{f', times {config.lr_decay} after {falls}' if falls else ''}; {config.precision}; "
            f"seeds {self.seeds[0]} to {self.seeds[-1]}, the same teacher for all"
        )
        for name, lr in config.lr_of.items():
            yield f"learning rate {lr} for {name}"
        summaries = [summary for piece in self.pieces() if (summary := piece.run.summary) is not None]
        for machine in sorted({f"{s.get('machine', s['device'])}, torch {s['torch']}" for s in summaries}):
            yield f"trained on {machine}"

    def _asked(self, pair: tuple[str, str], entry: Entry, seed: int) -> TrainConfig:
        """The run of one trial."""
        teacher, student = pair
        if entry.method == "ce":
            return self._train(student, seed, "student")
        checkpoint = self.config.teacher_checkpoints.get(teacher)
        if teacher in self.untrained:
            checkpoint = self._train(teacher, self.config.seed, "teacher").run
        return DistillConfig(
            **self._shared(student),
            run=str(Path(self.config.run) / file_name(f"{teacher}-{student}") / f"{file_name(entry.label)}-{seed}"),
            seed=seed,
            student=student,
            teacher=teacher,
            student_pretrained=self.config.student_pretrained,
            teacher_pretrained=self.config.teacher_pretrained,
            teacher_checkpoint=checkpoint,
            method=entry.method,
            settings=entry.settings,
            kd_temperature=self.config.kd_temperature,
            **entry.weights,
        )

    def _train(self, network: str, seed: int, role: str) -> TrainConfig:
        folder = f"teachers/{file_name(network)}" if role == "teacher" else f"alone/{file_name(network)}-{seed}"
        named: dict[str, Any] = {role: network, f"{role}_pretrained": getattr(self.config, f"{role}_pretrained")}
        return TrainConfig(**self._shared(network), **named, run=str(Path(self.config.run) / folder), seed=seed)

    def _shared(self, network: str) -> dict[str, Any]:
        """What all runs have in common, with the learning rate that a network needs."""
        own = {"run", "seed", "student", "teacher", "role", "student_pretrained", "teacher_pretrained", "lr"}
        names = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in own]
        shared = {name: getattr(self.config, name) for name in names}
        return shared | {"lr": self.config.lr_of.get(network, self.config.lr)}


def _show(comparison: Comparison, folder: Path, status: str) -> None:
    """Rewrites the tables on disk, and on a terminal the one in view."""
    numbers = comparison.numbers()
    write(numbers, folder)
    clear = "\x1b[2J\x1b[H" if sys.stderr.isatty() else ""
    tables = "\n\n".join(f"{pair['teacher']} -> {pair['student']}\n{pair_table(pair)}" for pair in numbers["pairs"])
    print(f"{clear}{tables}\n{status}", file=sys.stderr, flush=True)
