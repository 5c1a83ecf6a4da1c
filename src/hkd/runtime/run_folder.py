"""The run folder: all that is left of a run, and all that later steps read of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from hkd.errors import RequestError
from hkd.models.base import Model
from hkd.models.weights import save_model

LOCK = ".lock"

# What may differ when a run is continued: where it computes, not what.
FREE_TO_CHANGE = frozenset(
    {"run", "device", "workers", "data_root", "compile", "tensorboard", "save_minutes", "skip_bad_steps"}
)


class RunFolder:
    """One run on disk.

    ==========================  =========================================================
    ``config.yaml``             what was asked for, as ``--config`` takes it
    ``metrics.jsonl``           a line an epoch; those up to epoch 0 are of a method's initialisation
    ``checkpoints/last.pt``     everything needed to continue
    ``checkpoints/previous.pt`` the same of the save before, for the case that the last cannot be read
    ``checkpoints/best.safetensors``  the network of the best epoch
    ``tensorboard/``            curves
    ``student.safetensors``     the network of the last epoch (``model.safetensors`` for `hkd train`)
    ``predictions.npz``         ``predicted`` and ``label`` of each test image, of the network of the last epoch
    ``summary.json``            the result; its being there is what finished means
    ==========================  =========================================================

    Args:
        path: of the folder.
        writes: False in all but one of several processes, which then only read.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self._held: FileLock | None = None
        self.checkpoints = self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.checkpoints / "last.pt"

    @property
    def previous(self) -> Path:
        """The one before it."""
        return self.checkpoints / "previous.pt"

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        file = self.path / "summary.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text())
            return found
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise RequestError(f"run: {file} is corrupt; start over with --fresh") from error

    def open(self, config: dict[str, Any], defaults: dict[str, Any], *, fresh: bool) -> None:
        """Prepares the folder for a new or continued run, and keeps other processes out until :meth:`close`.

        Args:
            config: what is asked for.
            defaults: what an earlier version's run means by not naming a field.
            fresh: keep what is there under another name, and start over.

        Raises:
            RequestError: the folder holds a run that was asked for differently, or something that is no run, or another
                process works in it.
        """
        finished = self.summary is not None and not fresh  # it is read, for which nobody has to wait
        if finished or not self.writes:
            self.check(config, defaults)
            return
        file = self.path / "config.yaml"
        if self.path.exists() and not file.is_file() and not self._is_a_beginning:
            raise RequestError(f"run: {self.path} exists and is no run folder; name another with --run")
        try:
            self._lock()
            if fresh and file.is_file():
                kept = set_aside(self.path)  # the lock moves with the folder
                (kept / LOCK).unlink(missing_ok=True)
                self._release()
                self._lock()
            if self.begun:
                self.check(config, defaults)
                return
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _write(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
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
        ours = (LOCK, self.checkpoints.name)
        return all(found.name in ours or found.suffix == ".partial" for found in self.path.iterdir())

    def _lock(self) -> None:
        """The system lets go of it when the process ends, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._held = FileLock(self.path / LOCK, timeout=0)
        try:
            self._held.acquire()
        except Timeout:
            self._held = None
            raise RequestError(
                f"run: another process is working in {self.path}; wait for it, or name another folder with --run"
            ) from None

    def close(self) -> None:
        """Lets other processes in."""
        if self._held is not None:
            # Before it is let go: whoever waits for this file finds it gone and makes a new one.
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    @property
    def begun(self) -> bool:
        """Whether there is something to continue or to keep."""
        kept = (self.last, self.previous, self.path / "summary.json")
        return any(file.is_file() for file in kept) and (self.path / "config.yaml").is_file()

    def check(self, config: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Raises :class:`RequestError` where the folder holds a run that was asked for differently."""
        if not self.begun:
            return
        before = yaml.safe_load((self.path / "config.yaml").read_text()) or {}
        before = {name: value for name, value in defaults.items() if name in config} | before
        for name in sorted(set(before) | set(config)):
            if name not in FREE_TO_CHANGE and before.get(name) != config.get(name):
                raise RequestError(
                    f"run: {self.path} holds a run with {name} = {before.get(name)}, not {config.get(name)}; "
                    "name another folder with --run, or start over with --fresh"
                )

    def save_checkpoint(self, state: dict[str, Any]) -> bool:
        """Writes the state to continue from, and keeps the one before; a crash loses neither.

        Returns:
            Whether it could; if not, it has warned. True in the processes that only read.
        """
        if not self.writes:
            return True
        partial, saved = self.checkpoints / "last.partial", False
        with self._warning("the checkpoint", "the run goes on and tries again after the next epoch"):
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            if not _is_whole(partial):
                raise OSError(0, "what was written cannot be read back")
            if self.last.is_file():
                self.last.replace(self.previous)
            partial.replace(self.last)
            _sync_folder(self.checkpoints)
            saved = True
        return saved  # noqa: RET504  (a warning was given on the way)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from, on the CPU, or None at the start of a run.

        Where the last checkpoint cannot be read, the one before it is taken, and said so.

        Raises:
            RequestError: there are checkpoints, and none can be read.
        """
        found = [file for file in (self.last, self.previous) if file.is_file()]
        for number, file in enumerate(found):
            try:
                if not _is_whole(file):
                    raise ValueError("broken")
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            except Exception:  # a torn file may break its reader anywhere
                continue
            if number and self.writes:
                print(f"{self.last} is corrupt; going on from {file}", file=sys.stderr)
            return state
        if found:
            raise RequestError(f"run: {found[0]} is corrupt; start over with --fresh")
        return None

    def save_best(self, student: Model, **about: Any) -> None:
        """Writes the network of the best epoch. Warns where it cannot."""
        if not self.writes:
            return
        with self._warning("the best network", "the run goes on without it"):
            save_model(student, self.checkpoints / "best.safetensors", **about)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Writes ``metrics.jsonl``. Warns where it cannot; the rows are in the checkpoint, too."""
        if not self.writes:
            return
        with self._warning("the metrics", "they are written again after the next epoch"):
            _write(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    @contextlib.contextmanager
    def _warning(self, what: str, then: str) -> Iterator[None]:
        """A full disk does not end a run."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            print(f"warning: {what} could not be saved in {self.path} ({reason}); {then}", file=sys.stderr)
            for partial in (*self.path.glob("*.partial"), *self.checkpoints.glob("*.partial")):
                with contextlib.suppress(OSError):
                    partial.unlink()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, without one that a crash cut short."""
        file = self.path / "metrics.jsonl"
        found = []
        for line in file.read_text().splitlines() if file.is_file() else []:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def save_predictions(self, predicted: Tensor, label: Tensor) -> None:
        """Writes the classes (N,) that were predicted and that were right, of each test image in order."""
        if not self.writes:
            return
        partial = self.path / "predictions.partial.npz"
        np.savez_compressed(partial, predicted=predicted.numpy(), label=label.numpy())
        partial.replace(self.path / "predictions.npz")

    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """The predicted and the right class of each test image, (N,) int64 each.

        Raises:
            RequestError: they are missing or corrupt.
        """
        file = self.path / "predictions.npz"
        try:
            with np.load(file, allow_pickle=False) as found:
                return found["predicted"], found["label"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RequestError(f"run: {file} is missing or corrupt; start the run over with --fresh") from error

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the result."""
        if self.writes:
            _write(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def _is_whole(file: Path) -> bool:
    """Whether every part of a checkpoint has its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError):
        return False


def _sync_folder(folder: Path) -> None:
    """Makes sure that renamed files are found under their new names after a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Starting over keeps what was there, under another name, which is returned."""
    path, number = path.resolve(), 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def _write(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
