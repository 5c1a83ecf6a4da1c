"""The run folder: all that is left of a run, and all that later steps read of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from hkd.errors import RequestError
from hkd.files import PARTIAL, inside, parse_json, read_text, replacing, shown_path, write_json, write_text
from hkd.models.base import Model
from hkd.models.weights import check_archive, save_model
from hkd.options import shown
from hkd.outside import printable
from hkd.runtime.records import (
    FAILURE,
    METRICS,
    MOST_CLASSES,
    MOST_IMAGES,
    MOST_STARTS,
    RESULT,
    ROW,
    STARTS,
    SUMMARY,
    checked,
    corrupt,
    read_arrays,
    read_record,
    require,
)  # fmt: skip
from hkd.spec import WEIGHTS, RunSpec

LOCK = ".lock"
EPOCHS = ("epochs", "epochs_before")
FORMAT = 2
"""Of ``last.pt``; format 1, of version 0.1, names none."""
LARGEST_PREDICTIONS = 2**25
"""Bytes of the predictions for :data:`MOST_IMAGES`."""

CHANGED = {
    "data_digest": "dataset: the images are",
    "teacher_digest": "teacher: the teacher's weights are",
    "images_a_step": "batch_size: the number of images in a step, of all processes together, is",
}
"""What a run cannot continue without and options do not say, in words."""


WRITTEN = (
    (LOCK,), ("config.yaml",), ("metrics.jsonl",), ("predictions.npz",), ("summary.json",), ("failed.json",),
    ("provenance.json",),
    ("log.txt",), ("logger.json",), ("tensorboard",), ("teacher",), *((name,) for name in WEIGHTS),
    *(("checkpoints", name) for name in ("last.pt", "previous.pt", "best.safetensors")),
)  # fmt: skip
"""What a run may write, or read again."""
LONGEST_MESSAGE = 1000
"""Characters of why a run failed."""


class RunState(StrEnum):
    """How far a run is. A failed run is tried again with --retry-failed only; a search prunes runs."""

    MISSING = "missing"
    BEGUN = "begun"
    FINISHED = "finished"
    FAILED = "failed"
    PRUNED = "pruned"


class RunFolder:
    """One run on disk.

    ==========================  =========================================================
    ``config.yaml``             the specification, resolved, as ``--config`` takes it
    ``metrics.jsonl``           a line an epoch; those up to epoch 0 are of a method's initialisation
    ``checkpoints/last.pt``     everything needed to continue; dropped when the run is finished
    ``checkpoints/previous.pt`` the same of the save before, for the case that the last cannot be read
    ``checkpoints/best.safetensors``  the network of the best epoch
    ``tensorboard/``            curves
    ``logger.json``             which run of another logger has the curves, to continue it
    ``student.safetensors``     the network of the last epoch (``model.safetensors`` for `hkd train`)
    ``predictions.npz``         ``predicted`` and ``label`` of each test image, of the network of the last epoch
    ``summary.json``            the result; a run that has one is finished
    ``failed.json``             why a study's run ended without one
    ``provenance.json``         an entry for each start of the run, which ``summary.json`` repeats
    ``log.txt``                 what a study's run printed
    ==========================  =========================================================

    The folder may be a link, since a person named it. Nothing in it may: a path of it that is or leads through a link
    raises :class:`RequestError`.

    Args:
        path: of the folder.
        writes: False in all but one of several processes, which then only read.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self._lock: FileLock | None = None

    def file(self, *names: str) -> Path:
        """The path of something in the folder, see :func:`hkd.files.inside`."""
        return inside(self.path, *names)

    @property
    def checkpoints(self) -> Path:
        return self.file("checkpoints")

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.file("checkpoints", "last.pt")

    @property
    def previous(self) -> Path:
        """The one before it."""
        return self.file("checkpoints", "previous.pt")

    @property
    def config(self) -> Path:
        return self.file("config.yaml")

    @property
    def log_file(self) -> Path:
        return self.file("log.txt")

    @cached_property
    def spec(self) -> RunSpec:
        """The specification that the run was started with.

        Raises:
            RequestError: the folder holds none, or a corrupt one.
        """
        return RunSpec.read(self.config)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a finished run, or None; of its fields ``top1_last`` is there for certain."""
        try:
            return read_record(self.path / "summary.json", SUMMARY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except RequestError as error:
            raise RequestError(f"{error}; start over with --fresh") from error

    @property
    def result(self) -> dict[str, Any]:
        """The result of a finished run, with all fields that say how it went.

        Raises:
            RequestError: one is missing.
        """
        summary = self.summary or {}
        require(summary, RESULT, SUMMARY, self.path / "summary.json")
        return summary

    @property
    def weights(self) -> Path:
        """The file with the network of the last epoch."""
        return self.file(WEIGHTS[0 if self.spec.method is not None else 1])

    @property
    def failure(self) -> dict[str, Any] | None:
        """Why the run ended without a result: its ``state``, ``message`` and exit ``status``; None if it did not."""
        try:
            failure = read_record(self.path / "failed.json", FAILURE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return failure | {"message": printable(failure["message"], LONGEST_MESSAGE)}

    @property
    def state(self) -> RunState:
        if self.file("summary.json").is_file():
            return RunState.FINISHED
        if (failure := self.failure) is not None:
            return RunState.PRUNED if failure["state"] == RunState.PRUNED else RunState.FAILED
        return RunState.BEGUN if self.config.is_file() else RunState.MISSING

    def extended(self, spec: RunSpec) -> RunSpec:
        """The specification under which the run in the folder gets the epochs that ``spec`` has more.

        It is ``spec`` with the numbers of epochs that the run had before, so that it is never taken for a run that had
        all of them from the start; ``spec`` itself where the folder holds no run or one that differs otherwise.
        """
        if not self.config.is_file():
            return spec
        before, wanted = self.spec.optimisation, spec.optimisation
        history = before.epochs_before if wanted.epochs == before.epochs else (*before.epochs_before, before.epochs)
        more = replace(spec, optimisation=replace(wanted, epochs_before=history))
        as_before = replace(more, optimisation=replace(wanted, **{name: getattr(before, name) for name in EPOCHS}))
        fits = wanted.epochs >= before.epochs and history and as_before.key() == self.spec.key()
        return more if fits and as_before.seed == self.spec.seed else spec

    def _is_extended(self, spec: RunSpec) -> bool:
        """Whether the folder holds a finished run that is given more epochs, from its last checkpoint.

        Raises:
            RequestError: it has none.
        """
        if self.summary is None or spec.optimisation.epochs_before[-1:] != (self.spec.optimisation.epochs,):
            return False
        if not self.last.is_file():
            raise RequestError(
                f"run: {self.path} holds a run with epochs = {self.spec.optimisation.epochs} that kept no checkpoint "
                "to continue from, as one with --keep-checkpoints does; name another folder with --run, or start over "
                "with --fresh"
            )
        return True

    # -- who works in it ----------------------------------------------------------------------------------------------

    def open(self, spec: RunSpec, *, fresh: bool) -> None:
        """Prepares the folder for a new or continued run, and keeps other processes out until :meth:`close`.

        Args:
            spec: of the run, resolved.
            fresh: keep what is there under another name, and start over.

        Raises:
            RequestError: the folder holds another run, a link, or something that is no run, or another process works
                in it.
        """
        self.__dict__.pop("spec", None)  # the process that writes may have been here since it was read
        if not fresh:
            for names in WRITTEN:  # now, and not at the end of the training
                self.file(*names)
        extended = not fresh and self._is_extended(spec)
        if not fresh and not extended and (not self.writes or self.summary is not None):  # reading needs no lock
            self.check(spec)
            return
        if not self.writes:
            return
        if self.path.exists() and not self.config.is_file() and not self._is_a_beginning:
            raise RequestError(f"run: {self.path} exists and is not a run folder; name another with --run")
        try:
            self._acquire()
            if fresh and self.config.is_file():
                kept = set_aside(self.path)  # the lock moves with the folder
                (kept / LOCK).unlink(missing_ok=True)
                self._release()
                self.__dict__.pop("spec", None)
                self._acquire()
            if extended:
                (self.path / "summary.json").unlink()
            elif self.begun:
                self.check(spec)
                return
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            spec.save(self.config)
            self.__dict__.pop("spec", None)
        except OSError as error:
            self.close()
            raise RequestError(f"run: cannot write to {self.path} ({error.strerror})") from error
        except BaseException:
            self.close()
            raise

    @property
    def _is_a_beginning(self) -> bool:
        """Whether the folder holds no more than what a start leaves that was cut short."""
        if not self.path.is_dir() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir())):
            return False
        ours = (LOCK, self.checkpoints.name, self.log_file.name, "failed.json")
        return all(file.name in ours or file.suffix == PARTIAL for file in self.path.iterdir())

    def _acquire(self) -> None:
        """The system lets go of it when the process ends, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        # A moment, since another process that only looks whether the folder is locked holds the lock while it looks.
        self._lock = FileLock(self.file(LOCK), timeout=1)
        try:
            self._lock.acquire()
        except Timeout:
            self._lock = None
            raise RequestError(
                f"run: another process is working in {self.path}; wait for it, or name another folder with --run"
            ) from None

    @property
    def is_locked(self) -> bool:
        """Whether another process is working in the folder."""
        file = self.file(LOCK)
        if self._lock is not None or not file.is_file():
            return False
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            # Before it is released: a process that waits for this file then makes a new one.
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def begun(self) -> bool:
        """Whether there is something to continue or to keep."""
        kept = (self.last, self.previous, self.file("summary.json"))
        return any(file.is_file() for file in kept) and self.config.is_file()

    def check(self, spec: RunSpec) -> None:
        """Raises :class:`RequestError` where the folder holds another run: of another key or another seed."""
        if not self.begun:
            return
        before, advice = self.spec, "name another folder with --run, or start over with --fresh"
        of_first_version = before.data.revision == 0
        if (before.difference(spec) is not None) if of_first_version else (before.key() != spec.key()):
            name, old, new = before.difference(spec) or ("another specification", before.key(), spec.key())
            if name in CHANGED:
                raise RequestError(f"{changed(name, self.path)}; {advice}")
            raise RequestError(f"run: {self.path} holds a run with {name} = {old}, not {new}; {advice}")
        if before.seed != spec.seed:
            raise RequestError(f"run: {self.path} holds a run with seed = {before.seed}, not {spec.seed}; {advice}")
        if of_first_version and self.summary is None:
            raise RequestError(f"run: {self.path} holds an unfinished run of hkd 0.1, which cannot continue; {advice}")

    # -- what a run writes --------------------------------------------------------------------------------------------

    def save_checkpoint(self, state: dict[str, Any]) -> bool:
        """Writes the state to continue from, and keeps the one before; a crash loses neither.

        Returns:
            Whether it could; if not, it has warned. True in the processes that only read.
        """
        if not self.writes:
            return True
        saved = False
        with self._warning("the checkpoint", "the run continues and tries again after the next epoch"):
            with replacing(self.checkpoints / "new.pt") as file:
                torch.save({"format": FORMAT} | state, file)
            if not _is_whole(self.checkpoints / "new.pt"):
                raise OSError(0, "what was written cannot be read back")
            if self.last.is_file():
                self.last.replace(self.previous)
            (self.checkpoints / "new.pt").replace(self.last)
            saved = True
        return saved  # noqa: RET504  (a warning was given on the way)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from, on the CPU, or None at the start of a run.

        Where the last checkpoint cannot be read, the one before it is taken, with a warning.

        Raises:
            RequestError: there are checkpoints, and none can be read, or one is of another version's format.
        """
        files = [file for file in (self.last, self.previous) if file.is_file()]
        for number, file in enumerate(files):
            try:
                if not _is_whole(file):
                    raise ValueError("broken")
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                version = state.pop("format", 1)
            except Exception:  # a torn file may break its reader anywhere
                continue
            if version != FORMAT:
                raise RequestError(
                    f"run: {shown_path(file)} has checkpoint format {shown(version)}, and this version continues "
                    f"format {FORMAT}; start over with --fresh"
                )
            if number and self.writes:
                print(f"{self.last} is corrupt; continuing from {file}", file=sys.stderr)
                self.last.unlink()  # the next save would put it in the place of the whole one
            return state
        if files:
            raise RequestError(f"run: {files[0]} is corrupt; start over with --fresh")
        return None

    def save_best(self, student: Model, **metadata: Any) -> None:
        """Writes the network of the best epoch. Warns where it cannot."""
        if not self.writes:
            return
        with self._warning("the best network", "the run continues without it"):
            save_model(student, self.file("checkpoints", "best.safetensors"), **metadata)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Writes ``metrics.jsonl``. Warns where it cannot; the rows are in the checkpoint, too."""
        if not self.writes:
            return
        with self._warning("the metrics", "they are written again after the next epoch"):
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    @contextlib.contextmanager
    def _warning(self, what: str, then: str) -> Iterator[None]:
        """A full disk does not end a run."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if "DataLoader worker" in str(error):  # torch raises it wherever the run is, and not for the disk
                raise
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            print(f"warning: {what} could not be saved in {self.path} ({reason}); {then}", file=sys.stderr)

    def rows(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, without a last one that a crash cut short.

        Raises:
            RequestError: one holds anything but finite numbers by name.
        """
        rows: list[dict[str, Any]] = []
        file = self.path / "metrics.jsonl"
        try:
            lines = read_text(file).splitlines()
        except FileNotFoundError:
            return rows
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line)
            except ValueError as error:
                if number == len(lines):
                    break
                raise corrupt(file, f"line {number}: {error}") from error
            if not METRICS.holds(row):
                raise corrupt(file, f"line {number}: expected {METRICS.expected}; got {shown(row)}")
            checked(row, ROW, file)
            rows.append(row)
        return rows

    def save_predictions(self, predicted: Tensor, label: Tensor) -> None:
        """Writes the classes (N,) that were predicted and that were right, of each test image in order."""
        if self.writes:
            with replacing(self.path / "predictions.npz") as file:
                np.savez_compressed(file, predicted=predicted.numpy(), label=label.numpy())

    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """The predicted and the right class of each test image, (N,) int64 each.

        Raises:
            RequestError: they are missing or corrupt.
        """
        file = self.path / "predictions.npz"
        shapes = {"predicted": ("i", 1), "label": ("i", 1)}
        try:
            predicted, label = read_arrays(file, shapes, LARGEST_PREDICTIONS).values()
        except (OSError, RequestError) as error:
            words = f" ({str(error).removeprefix('run: ')})" if isinstance(error, RequestError) else ""
            raise RequestError(
                f"run: {shown_path(file)} is missing or corrupt{words}; start the run over with --fresh"
            ) from error
        several = predicted.shape == label.shape and len(label) in range(1, MOST_IMAGES + 1)
        if not several or not all(part.min() >= 0 and part.max() < MOST_CLASSES for part in (predicted, label)):
            raise RequestError(
                f"run: {shown_path(file)} is missing or corrupt (expected two lists of classes); start the run over "
                "with --fresh"
            )
        return predicted, label

    def finish(self, summary: dict[str, Any], *, keep_checkpoints: bool = False) -> None:
        """Writes the result, and drops what only an unfinished run needs."""
        if not self.writes:
            return
        write_json(self.path / "summary.json", summary)
        for file in () if keep_checkpoints else (self.last, self.previous):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Where the run's numbers come from, an entry for each start.

        Raises:
            RequestError: the file holds anything else.
        """
        try:
            starts: list[dict[str, Any]] = read_record(self.path / "provenance.json", STARTS)["starts"]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return starts

    def save_starts(self, starts: list[dict[str, Any]]) -> None:
        """Writes the entries, the latest :data:`MOST_STARTS`. Warns where it cannot."""
        if self.writes:
            with self._warning("the provenance", "the run continues without it"):
                write_json(self.path / "provenance.json", {"starts": starts[-MOST_STARTS:]})

    def fail(self, state: RunState, message: str, status: int) -> None:
        """Records why a run ended without a result."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "failed.json", {"state": str(state), "message": message, "status": status})

    def forget_failure(self) -> None:
        """So that the run is tried again."""
        (self.path / "failed.json").unlink(missing_ok=True)


def changed(name: str, path: Path) -> str:
    """Which of :data:`CHANGED` is not what the run in a folder began with."""
    return f"{CHANGED[name]} not what the run in {path} began with"


def _is_whole(file: Path) -> bool:
    """Whether every part of a checkpoint has its checksum."""
    try:
        check_archive(file)
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, LookupError):
        return False


def set_aside(path: Path) -> Path:
    """Starting over keeps what was there, under another name, which is returned."""
    path, number = Path(os.path.abspath(path)), 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.{number}")):
        number += 1
    path.rename(aside)
    return aside


def find_runs(folder: Path) -> list[RunFolder]:
    """The run folders in a folder, itself included, in the order of their paths."""
    return [RunFolder(config.parent) for config in sorted(folder.rglob("config.yaml"))]
