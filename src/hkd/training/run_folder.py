"""The run folder: all that is left of a run, and all that later steps read of it."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import torch
import yaml
from torch import Tensor

from hkd.errors import RequestError

# What may differ when a run is continued: where it computes, not what.
FREE_TO_CHANGE = frozenset({"run", "device", "workers", "data_root", "compile", "tensorboard"})

P = ParamSpec("P")


def _in_the_writer(method: Callable[P, None]) -> Callable[P, None]:
    """Makes a method do nothing in the processes that only read."""

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        if args[0].writes:  # type: ignore[attr-defined]
            method(*args, **kwargs)

    return checked


class RunFolder:
    """One run on disk.

    ==========================  =========================================================
    ``config.yaml``             what was asked for, as ``--config`` takes it
    ``metrics.jsonl``           a line an epoch; those up to epoch 0 are of a method's initialisation
    ``checkpoints/last.pt``     everything needed to continue
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
        self.checkpoints = self.path / "checkpoints"

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
        """Prepares the folder for a new or continued run.

        Args:
            config: what is asked for.
            defaults: what an earlier version's run means by not naming a field.
            fresh: keep what is there under another name, and start over.

        Raises:
            RequestError: the folder holds a run that was asked for differently, or something that is no run.
        """
        file = self.path / "config.yaml"
        if self.path.exists() and not file.is_file() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RequestError(f"run: {self.path} exists and is no run folder; name another with --run")
        if fresh and file.is_file() and self.writes:
            set_aside(self.path)
        if self.begun:
            self.check(config, defaults)
            return
        if not self.writes:
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _write(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise RequestError(f"run: cannot write to {self.path} ({error.strerror})") from error

    @property
    def begun(self) -> bool:
        """Whether there is something to continue or to keep."""
        trained = (self.checkpoints / "last.pt").is_file() or (self.path / "summary.json").is_file()
        return trained and (self.path / "config.yaml").is_file()

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

    @_in_the_writer
    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes the state to continue from. A crash while writing leaves the one before."""
        partial = self.checkpoints / "last.partial"
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.checkpoints / "last.pt")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from, on the CPU, or None at the start of a run."""
        file = self.checkpoints / "last.pt"
        if not file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            return state
        except Exception as error:  # a torn file may break its reader anywhere
            raise RequestError(f"run: {file} is corrupt; start over with --fresh") from error

    @_in_the_writer
    def log(self, row: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

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

    @_in_the_writer
    def keep_rows(self, epochs: int) -> None:
        """Drops what was logged after the checkpoint that a run continues from."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        _write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    @_in_the_writer
    def save_predictions(self, predicted: Tensor, label: Tensor) -> None:
        """Writes the classes (N,) that were predicted and that were right, of each test image in order."""
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

    @_in_the_writer
    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the result."""
        _write(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def set_aside(path: Path) -> None:
    """Starting over keeps what was there, under another name."""
    path, number = path.resolve(), 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)


def _write(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
