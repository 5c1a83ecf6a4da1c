"""Studies without training: an engine whose runs are finished at once, and what they leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import hkd
from hkd.api import Result
from hkd.cli import main
from hkd.runtime.run_folder import RunFolder
from hkd.spec import RunSpec
from hkd.studies.engines import Engine, Handle


class Ended(Handle):
    """A process that has ended."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class InstantEngine(Engine):
    """Reads each command as the command line does, and leaves a finished run.

    Attributes:
        started: the last two parts of the folders of the runs.
        stop_at: how many runs are started before Ctrl-C.
    """

    slots = 1

    def __init__(self, stop_at: int | None = None) -> None:
        self.started: list[str] = []
        self.commands: list[list[str]] = []
        self.stop_at = stop_at

    def start(self, command: Sequence[str], log: Path) -> Ended:
        if len(self.started) == self.stop_at:
            raise KeyboardInterrupt
        self.commands.append(list(command))
        self.started.append("/".join(log.parent.parts[-2:]))
        with log.open("a") as output, contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return Ended(main(command[3:]))


def instant_run(top1_of: Callable[[RunSpec], float] = lambda _: 50.0) -> Callable[..., Result]:
    """A replacement of :func:`hkd.train` and :func:`hkd.distill` that leaves a run of a given accuracy."""

    def run(spec: RunSpec, *, fresh: bool = False) -> Result:
        spec = spec.resolved()
        folder = RunFolder(spec.run)
        folder.open(spec, fresh=fresh)
        return finish(folder, spec, top1_of(spec))

    return run


def finish(folder: RunFolder, spec: RunSpec, top1: float, images: int = 200) -> Result:
    """Leaves a finished run of a given accuracy."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if not folder.config.is_file():
        spec.save(folder.config)
    model = hkd.create_model(spec.student.name or "resnet8", spec.data.limit_classes or 10)
    hkd.save_model(model, folder.weights)
    right = torch.arange(images) < round(top1 / 100 * images)
    folder.save_predictions((~right).long(), torch.zeros(images, dtype=torch.int64))
    summary: dict[str, Any] = {
        "top1_last": top1, "top1_best": top1, "top5_last": 100.0, "best_epoch": 1, "epochs": spec.optimisation.epochs,
        "seconds": 60.0 * spec.optimisation.epochs, "images_per_second": 9.0,
    }  # fmt: skip
    folder.finish(summary)
    folder.close()
    return Result(folder.path, model, summary, folder.weights)
