"""The rows of a run as curves of a logger, by Accelerate's trackers."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hkd.errors import RequestError
from hkd.files import write_json
from hkd.outside import is_installed, printable
from hkd.runtime.engine import Engine, make_tracker
from hkd.runtime.records import LOGGED, read_record
from hkd.runtime.run_folder import RunFolder
from hkd.spec import RunSpec

PROJECT = "hkd"
"""The project or experiment; ``WANDB_PROJECT`` and ``MLFLOW_EXPERIMENT_NAME`` name others."""
LOCAL = ("run", "data_root", "image_cache", "teacher_cache")
"""Options that name places on this machine, which no logger needs."""
IDENTITIES: dict[str, Callable[[Any], str]] = {
    "wandb": lambda tracker: tracker.run.id,
    "mlflow": lambda tracker: tracker.active_run.info.run_id,
    "trackio": lambda tracker: tracker.run.name,
}
"""By what a logger's run is found again."""


class Curves:
    """The rows of a run in TensorBoard (the folder ``tensorboard`` of the run), wandb, mlflow or trackio.

    A logger that fails, on a full disk or without an account, warns once, and the run goes on without it, as it does
    without TensorBoard where that is not installed. A run that continues continues its curves.

    Args:
        spec: of the run, which names the logger.
        folder: of the run.
        engine: one of its processes writes.
        first_epoch: of the run, 0 or below, where a method has an initialisation.
        epoch: that the run continues after.
    """

    def __init__(
        self, spec: RunSpec, folder: RunFolder, engine: Engine, first_epoch: int = 0, epoch: int | None = None
    ) -> None:
        self.logger, self.folder = spec.runtime.curves, folder
        self._tracker: Any = None
        self._first = first_epoch
        self._hook = threading.excepthook
        if self.logger == "none" or not engine.is_main:
            return
        if self.logger == "tensorboard" and not is_installed("tensorboard"):
            say_once("no curves are written: tensorboard is not installed; pip install 'hkd[tensorboard]'")
            return
        threading.excepthook = self._told
        with self._warning():
            if self.logger == "tensorboard":  # its steps are epochs; what was written of later ones is dropped
                last = first_epoch if epoch is None else epoch
                self._tracker = make_tracker(self.logger, str(folder.file("tensorboard")), purge_step=last + 1)
                self._tracker.start()
            else:
                self._start(self._known(), "/".join(Path(os.path.abspath(folder.path)).parts[-2:]), spec)

    def _start(self, known: str | None, name: str, spec: RunSpec) -> None:
        """Begins or continues the run of a logger with runs of its own."""
        place = os.environ.get("WANDB_PROJECT", PROJECT) if self.logger == "wandb" else PROJECT
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": name, "dir": str(self.folder.path), "id": known, "resume": "allow" if known else None},
            "mlflow": {"run_name": name, "run_id": known},
            "trackio": {"name": known or name, "resume": "must" if known else "never"},
        }
        tracker = make_tracker(self.logger, place, **options[self.logger])
        tracker.start()
        self._tracker = tracker
        if known is None:
            tracker.store_init_configuration(dict(_settings(spec.to_flat())))
            write_json(self.folder.file("logger.json"), {"logger": self.logger, "id": IDENTITIES[self.logger](tracker)})

    def _known(self) -> str | None:
        """The logger's run that an earlier start of this one wrote to."""
        try:
            known = read_record(self.folder.file("logger.json"), LOGGED)
        except (FileNotFoundError, RequestError):
            return None
        return str(known["id"]) if known["logger"] == self.logger else None

    def write(self, row: dict[str, Any]) -> None:
        if self._tracker is not None:
            with self._warning():
                # The others take no step below 0, which the epochs of an initialisation have.
                step = row["epoch"] if self.logger == "tensorboard" else row["epoch"] - self._first
                self._tracker.log(row, step=step)

    def close(self) -> None:
        if self._tracker is not None:
            with self._warning():
                self._tracker.finish()
        threading.excepthook = self._hook

    def _told(self, error: threading.ExceptHookArgs) -> None:
        """TensorBoard's writer raises the error of its thread again, which need not print it besides."""
        if not type(error.thread).__module__.startswith("tensorboard."):
            self._hook(error)

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # other people's code, and other people's servers
            self._tracker = None
            reason = printable(" ".join(str(getattr(error, "strerror", None) or error).split()))
            reason = reason or type(error).__name__
            then = f"the run goes on without {self.logger}"
            print(f"warning: the curves cannot be written ({reason}); {then}", file=sys.stderr)


@functools.cache
def say_once(line: str) -> None:
    """Prints what holds for the student's training as for the teacher's before it."""
    print(line, file=sys.stderr, flush=True)


def _settings(flat: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options as loggers take them: a method's by dotted names, lists as text."""
    for name, value in flat.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        elif name not in LOCAL:
            yield prefix + name, value if isinstance(value, str | int | float | bool) else str(value)
