"""What a run needs to go on where it stopped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hkd.errors import RequestError
from hkd.training.engine import Engine
from hkd.training.objective import Objective
from hkd.training.run_folder import RunFolder


@dataclass
class State:
    """How far a run is. Epochs up to 0 are those of an initialisation stage."""

    epoch: int = 0
    best_top1: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    images: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a run whose state is saved: student, method (memory banks included), optimiser, scaler, generators.

    Attributes:
        run: where it is saved.
        objective: holds student and method.
        optimizer: as the engine prepared it.
        engine: holds the scaler of fp16.
        train_images: N; a run cannot go on with other data.
        first_epoch: where a new run starts, 0 or before it.
    """

    run: RunFolder
    objective: Objective
    optimizer: torch.optim.Optimizer
    engine: Engine
    train_images: int
    first_epoch: int = 0

    def save(self, state: State) -> None:
        method, scaler = self.objective.method, self.engine.scaler
        self.run.save_checkpoint(
            {
                "state": asdict(state),
                "train_images": self.train_images,
                "student": self.objective.student.state_dict(),
                "method": method.state_dict() if method is not None else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "random": self.engine.random_state(),
            }
        )

    def resume(self) -> State:
        """Puts everything back to where the run stopped; a new run starts at its first epoch.

        Raises:
            RequestError: the checkpoint is corrupt, or the training set is not the one that the run began with.
        """
        saved: dict[str, Any] | None = self.run.load_checkpoint()
        if saved is None:
            self._keep_rows(self.first_epoch)
            self.engine.set_random_state(None)
            return State(epoch=self.first_epoch)
        if saved["train_images"] != self.train_images:
            raise RequestError(
                f"dataset: the run in {self.run.path} began with {saved['train_images']} training images, "
                f"and now there are {self.train_images}; start over with --fresh"
            )
        self.objective.student.load_state_dict(saved["student"])
        if self.objective.method is not None:
            self.objective.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.engine.scaler is not None:
            self.engine.scaler.load_state_dict(saved["scaler"])
        self.engine.set_random_state(saved["random"])
        state = State(**saved["state"])
        self._keep_rows(state.epoch)
        if len(self.run.rows()) != state.epoch - self.first_epoch:
            raise RequestError(f"run: metrics.jsonl in {self.run.path} is incomplete; start over with --fresh")
        return state

    def _keep_rows(self, epochs: int) -> None:
        """In the process that writes; the others see it done."""
        with self.engine.first_of_all():
            self.run.keep_rows(epochs)
