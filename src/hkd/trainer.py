"""The training loop. It knows no method, model or data set by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hkd.config import TrainConfig
from hkd.data.loader import Loader
from hkd.distiller import Objective, Step
from hkd.errors import DivergedError, Stopped
from hkd.metrics import Sums, evaluate_model, hits, ranked
from hkd.models.base import Model
from hkd.runtime.checkpoint import Checkpoint
from hkd.runtime.engine import Engine
from hkd.runtime.guard import Guard, NotFiniteError
from hkd.runtime.progress import Curves, Progress
from hkd.runtime.run_folder import RunFolder
from hkd.runtime.stopping import Stopping, Wish
from hkd.types import Batch


@dataclass
class Training:
    """A student's training, from where its run folder left off.

    Args:
        objective: holds the student and the method; all their parameters are trained.
        teacher: a frozen network, or None.
        train, test: what to train and to evaluate on.
        config: epochs, learning rate and the like.
        engine: where to compute.
        folder: where to log, save, and continue from.
        about: written beside the student's weights.
        title: of the progress lines.
        origin: see :class:`Checkpoint`.

    Raises:
        RequestError: the run folder cannot be continued from.
    """

    objective: Objective
    teacher: Model | None
    train: Loader
    test: Loader
    config: TrainConfig
    engine: Engine
    folder: RunFolder
    about: dict[str, Any]
    title: str
    origin: dict[str, str]

    def __post_init__(self) -> None:
        objective, config, engine, folder = self.objective, self.config, self.engine, self.folder
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            objective.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.prepared, self.optimizer = engine.prepare(objective, optimizer, objective.uses_all_parameters)
        self.first = -objective.initialisation.epochs if objective.initialisation is not None else 0
        self.checkpoint = Checkpoint(folder, objective, self.optimizer, engine, self.origin, self.first)
        self.state = self.checkpoint.resume()
        if config.compile:
            for network in (objective.student, self.teacher):
                if network is not None:
                    network.compile()
        self.guard = Guard(engine, config.skip_bad_steps, self.state.skipped_steps)
        self.stopping = Stopping(engine, config.save_minutes)
        self.images = len(self.train.dataset)
        done = (self.state.epoch - self.first) * self.images + self.state.step * config.batch_size
        whole = (config.epochs - self.first) * self.images
        self.progress = Progress(self.title, whole, done, config.epochs, silent=not engine.is_main)
        curves = folder.path / "tensorboard" if config.tensorboard and engine.is_main else None
        self.curves = Curves(curves, self.state.epoch)

    def run(self) -> dict[str, Any]:
        """Trains to the last epoch.

        Returns:
            Accuracies of the last and the best epoch in percent, and what it took.

        Raises:
            DivergedError: the loss is no longer a number.
            Stopped: Ctrl-C or SIGTERM; where it is has been saved.
        """
        with closing(self.progress), closing(self.curves), self.stopping:
            for epoch in range(self.state.epoch, self.config.epochs):
                self.epoch(epoch)
        state, row = self.state, self.state.rows[-1]
        return {
            "top1_last": row["test_top1"],
            "top1_best": state.best_top1,
            "best_epoch": state.best_epoch,
            "top5_last": row["test_top5"],
            "epochs": state.epoch,
            "seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
            "skipped_steps": state.skipped_steps,
        }

    def epoch(self, epoch: int) -> None:
        """One epoch, or what is left of it."""
        state, started, initialising = self.state, time.perf_counter(), epoch < 0
        if epoch == 0 and state.step == 0:  # the training does not inherit the momentum of an initialisation
            self.optimizer.state.clear()
        lr = self.lr_at(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.objective.begin_epoch(epoch)
        self.guard.begin_epoch()
        sums, taken = Sums(state.sums, self.engine), state.epoch_seconds

        def after_step(step: int, made: Step) -> None:
            self.guard.saw(step, made)
            self.progress.images(self.config.batch_size)
            if (wish := self.stopping.wish(step)) is not Wish.GO_ON:
                self.guard.look()
                state.step, state.sums = step, sums.state(self.engine)
                state.epoch_seconds = taken + time.perf_counter() - started
                saved = self.save()
                if wish is Wish.STOP:
                    self.stop(saved)

        seen = self.teacher if initialising or self.objective.needs_teacher else None
        batches = self.train.epoch(epoch, state.step)
        try:
            train_epoch(
                self.prepared, seen, batches, self.optimizer, self.engine, initialising, sums, self.guard, after_step,
                state.step,
            )  # fmt: skip
            self.guard.look()
            means = epoch_means(sums, self.engine)
            if not means:
                raise NotFiniteError("in every step")
        except NotFiniteError as error:
            raise DivergedError(self.diverged(epoch, str(error))) from None
        self.finish_epoch(epoch, {"epoch": epoch + 1, "lr": lr, **means}, started - taken)

    def finish_epoch(self, epoch: int, row: dict[str, Any], started: float) -> None:
        """Evaluates, logs and saves.

        Args:
            row: what the training of the epoch gave.
            started: when it would have started, had it never been stopped.
        """
        state = self.state
        self.engine.average_buffers(self.objective.student)
        seconds = time.perf_counter() - started
        row |= {"seconds": seconds, "images_per_second": self.images / seconds}
        if epoch >= 0:
            found = evaluate_model(self.objective.student, self.test, self.engine)
            row |= {"test_top1": found.top1, "test_top5": found.top5, "test_loss": found.loss}
        if broken := [f"{name} {value}" for name, value in row.items() if not math.isfinite(value)]:
            raise DivergedError(self.diverged(epoch, ", ".join(broken)))

        state.epoch, state.step, state.sums, state.epoch_seconds = epoch + 1, 0, {}, 0.0
        state.rows.append(row)
        state.seconds += time.perf_counter() - started
        state.images += self.images
        if (top1 := row.get("test_top1", -math.inf)) > state.best_top1:
            state.best_top1, state.best_epoch = top1, epoch + 1
            self.folder.save_best(self.objective.student, **self.about, epoch=epoch + 1, top1=top1)
        saved = self.save()
        self.curves.write(row)
        left = state.seconds / (state.epoch - self.first) * (self.config.epochs - state.epoch)
        self.progress.epoch(row, state.best_top1, left)
        if epoch + 1 < self.config.epochs and self.engine.largest(int(self.stopping.signal is not None)):
            self.stop(saved)

    def lr_at(self, epoch: int) -> float:
        stage = self.objective.initialisation
        if stage is not None and epoch < 0:
            return stage.lr_at(epoch - self.first, self.config.lr)
        return self.config.lr_at(epoch)

    def save(self) -> bool:
        """Returns whether it could."""
        self.state.skipped_steps = self.guard.skipped
        self.stopping.has_saved()
        return self.checkpoint.save(self.state)

    def stop(self, saved: bool = True) -> None:
        state = self.state
        where = f"after step {state.step} of epoch {state.epoch + 1}" if state.step else f"after epoch {state.epoch}"
        then = "from there" if saved else "from the last checkpoint, since this could not be saved"
        raise Stopped(f"stopped {where}; the same command goes on {then}", self.stopping.status)

    def diverged(self, epoch: int, told: str) -> str:
        last = self.folder.last
        kept = f"what was before is kept in {last}" if last.is_file() else "nothing was learnt before"
        return (
            f"the loss is no longer a number in epoch {epoch + 1}, {told}; {kept}; "
            "start over with --fresh and a lower --lr, or leave such steps out with --skip-bad-steps"
        )


def train_epoch(
    objective: nn.Module,
    teacher: Model | None,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    engine: Engine,
    initialising: bool = False,
    sums: Sums | None = None,
    guard: Guard | None = None,
    after_step: Callable[[int, Step], None] | None = None,
    done: int = 0,
) -> Sums:
    """One pass over the training images. Returns the sums of the loss, its terms and the hits.

    In one process nothing in a step waits for the device; several agree on stopping every 20 steps.

    Args:
        objective: an :class:`Objective`, or what the engine made of it for several processes.
        initialising: whether the method's stage is trained, in which there are no hits.
        sums: to add to, of steps done before.
        guard: decides which steps are left out.
        after_step: is told the number of each step and what it gave.
        done: steps done before.
    """
    objective.train()
    sums = Sums() if sums is None else sums
    for number, batch in enumerate(batches, done + 1):
        undo = guard.before_step(objective) if guard is not None else None
        with engine.autocast():
            with torch.no_grad():
                seen = teacher(batch.image) if teacher is not None else None
            made: Step = objective(batch, seen, initialising)
        if guard is not None and guard.leaves_out(made):
            if undo is not None:
                undo()
            continue
        engine.backward(made.total)
        optimizer.step()
        optimizer.zero_grad()

        count = len(batch.label)
        with torch.no_grad():
            sums.add({name: count * value for name, value in {"loss": made.total, **made.terms}.items()}, count)
            if made.logits is not None:
                sums.add(hits(ranked(made.logits), batch.label))
        if after_step is not None:
            after_step(number, made)
    return sums


def epoch_means(sums: Sums, engine: Engine) -> dict[str, float]:
    """The means of the loss and its terms, and top-1 in percent."""
    found = sums.means(engine)
    top1 = {"train_top1": 100 * found["top1"]} if "top1" in found else {}
    return {name: found[name] for name in found if name not in ("top1", "top5")} | top1
