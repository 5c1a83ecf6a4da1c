"""The training loop. It knows no method, model or data set by name."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from hkd.config import TrainConfig
from hkd.data.loader import Loader
from hkd.errors import TrainingError
from hkd.models.base import Model
from hkd.models.weights import save_model
from hkd.training.engine import Engine
from hkd.training.metrics import Sums, accuracies, evaluate_model
from hkd.training.objective import Objective
from hkd.training.progress import Progress
from hkd.training.run_folder import RunFolder


@dataclass
class State:
    """How far a run is."""

    epoch: int = 0
    best_top1: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    images: int = 0


def fit(
    objective: Objective,
    teacher: Model | None,
    train: Loader,
    test: Loader,
    config: TrainConfig,
    engine: Engine,
    run: RunFolder,
    about: dict[str, Any],
    title: str,
) -> dict[str, Any]:
    """Trains a student, from where its run folder left off, to the last epoch.

    Args:
        objective: holds the student and the method; all their parameters are trained.
        teacher: a frozen network, or None.
        train, test: what to train and to evaluate on.
        config: epochs, learning rate and the like.
        engine: where to compute.
        run: where to log, save, and continue from.
        about: written beside the student's weights.
        title: of the progress lines.

    Returns:
        Accuracies of the last and the best epoch in percent, and what it took.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    optimizer: Any = torch.optim.SGD(
        objective.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    student, method = objective.student, objective.method
    objective, optimizer = engine.prepare(objective, optimizer)
    state = _resume(run, student, method, optimizer, engine)
    if config.compile:
        student.compile()
        if teacher is not None:
            teacher.compile()
    tensorboard = _tensorboard(run, config.tensorboard, state.epoch)
    count = len(train.dataset)
    progress = Progress(title, config.epochs * count, state.epoch * count, config.epochs)
    row = run.rows()[-1] if state.epoch else {}

    for epoch in range(state.epoch, config.epochs):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(epoch)
        objective.train()
        sums = Sums()
        for batch in train.epoch(epoch):
            with engine.autocast():
                with torch.no_grad():
                    seen = teacher(batch.image) if teacher is not None else None
                total, terms, logits = objective(batch, seen)
            engine.backward(total)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                sums.add(
                    {"loss": total, "train_top1": accuracies(logits, batch.label)["top1"], **terms}, len(batch.label)
                )
            progress.images(len(batch.label))

        means = sums.means()  # the epoch's only wait for the device
        if not math.isfinite(means["loss"]):
            progress.close()
            broken = ", ".join(name for name, value in means.items() if not math.isfinite(value))
            raise TrainingError(
                f"the loss is no longer a number in epoch {epoch + 1} ({broken}); the last good checkpoint is "
                f"{run.checkpoints / 'last.pt'}; a lower --lr may help"
            )
        elapsed = time.perf_counter() - started
        found = evaluate_model(student, test, engine)
        state.epoch = epoch + 1
        state.seconds += time.perf_counter() - started
        state.images += count
        row = {"epoch": epoch + 1, "lr": config.lr_at(epoch), **means, "test_top1": found.top1, "test_top5": found.top5,
               "test_loss": found.loss, "seconds": elapsed, "images_per_second": count / elapsed}  # fmt: skip
        if found.top1 > state.best_top1:
            state.best_top1, state.best_epoch = found.top1, epoch + 1
            save_model(student, run.checkpoints / "best.safetensors", **about, epoch=epoch + 1, top1=found.top1)
        run.log(row)
        for name, value in row.items():
            if tensorboard is not None and name != "epoch":
                tensorboard.add_scalar(name, value, epoch + 1)
        _save(run, state, student, method, optimizer, engine)
        progress.epoch(row, state.best_top1, state.seconds / state.epoch * (config.epochs - state.epoch))

    progress.close()
    if tensorboard is not None:
        tensorboard.close()
    return {
        "top1_last": row["test_top1"], "top1_best": state.best_top1, "best_epoch": state.best_epoch,
        "top5_last": row["test_top5"], "epochs": state.epoch, "seconds": state.seconds,
        "images_per_second": state.images / state.seconds if state.seconds else 0.0,
    }  # fmt: skip


def _save(run: RunFolder, state: State, student: Model, method: Any, optimizer: Any, engine: Engine) -> None:
    run.save_checkpoint({
        "state": dict(vars(state)),
        "student": student.state_dict(),
        "method": method.state_dict() if method is not None else {},
        "optimizer": optimizer.state_dict(),
        "scaler": engine.scaler.state_dict() if engine.scaler is not None else {},
        "random": engine.random_state(),
    })  # fmt: skip


def _resume(run: RunFolder, student: Model, method: Any, optimizer: Any, engine: Engine) -> State:
    saved = run.load_checkpoint()
    if saved is None:
        run.keep_rows(0)
        return State()
    student.load_state_dict(saved["student"])
    if method is not None:
        method.load_state_dict(saved["method"])
    optimizer.load_state_dict(saved["optimizer"])
    if engine.scaler is not None:
        engine.scaler.load_state_dict(saved["scaler"])
    engine.set_random_state(saved["random"])
    state = State(**saved["state"])
    run.keep_rows(state.epoch)
    return state


def _tensorboard(run: RunFolder, wanted: bool, epoch: int) -> Any:
    if not wanted:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=epoch + 1)
