"""What a run needs to continue where it stopped."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hkd.distiller import Distiller
from hkd.errors import RequestError
from hkd.outside import printable
from hkd.runtime.engine import Engine
from hkd.runtime.optimizers import restore
from hkd.runtime.records import STATE, checked, corrupt
from hkd.runtime.run_folder import RunFolder, changed


@dataclass
class State:
    """How far a run is. Epochs up to 0 are those of an initialisation stage.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the next one.
        sums: of loss, terms and hits in those, see :class:`Sums`.
        epoch_seconds: what they took.
        rows: of ``metrics.jsonl``, one for each finished epoch.
        skipped_steps: those whose loss was NaN or infinite.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    epoch_seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_top1: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    images: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a run whose state is saved: student, method (memory banks included), optimiser, scaler, generators.

    Attributes:
        run: where it is saved.
        distiller: holds student and method.
        optimizer: as the engine prepared it.
        engine: holds the scaler of fp16.
        origin: what a run cannot continue without, a key of CHANGED each.
        first_epoch: where a new run starts, 0 or before it.
        average: the student's moving average, of a run that keeps one.
    """

    run: RunFolder
    distiller: Distiller
    optimizer: torch.optim.Optimizer
    engine: Engine
    origin: dict[str, str]
    first_epoch: int = 0
    average: nn.Module | None = None

    def save(self, state: State) -> bool:
        """Writes everything. Returns whether it could; if not, it has warned."""
        method, scaler = self.distiller.method, self.engine.scaler
        saved = self.run.save_checkpoint(
            {
                "state": asdict(state),
                "origin": self.origin,
                "student": self.distiller.student.state_dict(),
                "method": method.state_dict() if method is not None else {},
                "average": {} if self.average is None else self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "random": self.engine.random_state(),
            }
        )
        self.run.log(state.rows)
        return saved

    def resume(self) -> State:
        """Puts everything back to where the run stopped; a new run starts at its first epoch.

        Raises:
            RequestError: the checkpoint is corrupt or of another run, or several processes do not find the same.
        """
        state = self._resume()
        place = next(iter(self.distiller.student.state_dict().values()))
        key = hashlib.sha256(f"{state.epoch} {state.step} {place.double().sum().item()!r}".encode()).digest()
        if not self.engine.all_equal(int.from_bytes(key[:6], "big")):
            raise RequestError(
                f"run: the processes find different checkpoints; {self.run.path} has to be on a shared disk"
            )
        return state

    def _resume(self) -> State:
        saved: dict[str, Any] | None = self.run.load_checkpoint()
        if saved is None:
            self.run.log([])
            self.engine.set_random_state(None)
            return State(epoch=self.first_epoch)
        try:
            for name, digest in self.origin.items():
                if saved["origin"].get(name, digest) != digest:
                    raise RequestError(changed(name, self.run.path))
            state = self._state(saved["state"])
            self._restore(saved)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except RequestError as error:
            raise RequestError(f"{error}; start over with --fresh") from error
        except Exception as error:  # a file from elsewhere may break its reader anywhere
            reason = printable(" ".join(str(error).split()) or type(error).__name__)
            raise RequestError(f"{corrupt(self.run.last, reason)}; start over with --fresh") from error
        self.run.log(state.rows)
        return state

    def _state(self, values: dict[str, Any]) -> State:
        """How far the run was."""
        state = State(**checked(values, STATE, self.run.last))
        if not self.first_epoch <= state.epoch or not all(isinstance(row.get("epoch"), int) for row in state.rows):
            raise ValueError("epochs that the run does not have")
        for name, value in state.sums.items():
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.isfinite():
                raise ValueError(f"sums: expected a finite number for {name}")
        return state

    def _restore(self, saved: dict[str, Any]) -> None:
        """Puts the parts back. The settings of the optimiser are those of the specification, not of the file."""
        self.distiller.student.load_state_dict(saved["student"])
        if self.distiller.method is not None:
            self.distiller.method.load_state_dict(saved["method"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        restore(self.optimizer, saved["optimizer"])
        if self.engine.scaler is not None:
            self.engine.scaler.load_state_dict(saved["scaler"])
        self.engine.set_random_state(saved["random"])
