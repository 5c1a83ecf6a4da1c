"""The training loop. It knows no method, model or data set by name."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hkd.config import TrainConfig
from hkd.data.loader import Loader
from hkd.errors import TrainingError
from hkd.models.base import Model
from hkd.models.weights import save_model
from hkd.training.checkpoint import Checkpoint
from hkd.training.engine import Engine
from hkd.training.metrics import Sums, evaluate_model, hits, ranked
from hkd.training.objective import Objective
from hkd.training.progress import Curves, Progress
from hkd.training.run_folder import RunFolder
from hkd.types import Batch


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
        RequestError: the run folder cannot be continued from.
    """
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        objective.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    student, images = objective.student, len(train.dataset)
    prepared, optimizer = engine.prepare(objective, optimizer, objective.uses_all_parameters)
    stage = objective.initialisation
    first = -stage.epochs if stage is not None else 0
    checkpoint = Checkpoint(run, objective, optimizer, engine, images, first)
    state = checkpoint.resume()
    if config.compile:
        student.compile()
        if teacher is not None:
            teacher.compile()
    tensorboard = Curves(run.path / "tensorboard" if config.tensorboard and engine.is_main else None, state.epoch)
    done = (state.epoch - first) * images
    progress = Progress(title, (config.epochs - first) * images, done, config.epochs, silent=not engine.is_main)
    row = run.rows()[-1] if state.epoch > first else {}  # resuming has made sure of it

    for epoch in range(state.epoch, config.epochs):
        started = time.perf_counter()
        initialising = epoch < 0
        if epoch == 0:  # the training does not inherit the momentum of an initialisation
            optimizer.state.clear()
        lr = stage.lr_at(epoch - first, config.lr) if stage is not None and initialising else config.lr_at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        objective.begin_epoch(epoch)
        seen = teacher if initialising or objective.needs_teacher else None
        means = train_epoch(prepared, seen, train.epoch(epoch), optimizer, engine, progress, initialising)
        engine.average_buffers(student)
        seconds = time.perf_counter() - started
        row = {"epoch": epoch + 1, "lr": lr, **means, "seconds": seconds, "images_per_second": images / seconds}
        if not initialising:
            found = evaluate_model(student, test, engine)
            row |= {"test_top1": found.top1, "test_top5": found.top5, "test_loss": found.loss}
        if broken := [name for name, value in row.items() if not math.isfinite(value)]:
            progress.close()
            raise TrainingError(_diverged(run, epoch, broken))

        state.epoch = epoch + 1
        state.seconds += time.perf_counter() - started
        state.images += images
        if (top1 := row.get("test_top1", -math.inf)) > state.best_top1:
            state.best_top1, state.best_epoch = top1, epoch + 1
            if run.writes:
                save_model(student, run.checkpoints / "best.safetensors", **about, epoch=epoch + 1, top1=top1)
        run.log(row)
        tensorboard.write(row)
        checkpoint.save(state)
        left = state.seconds / (state.epoch - first) * (config.epochs - state.epoch)
        progress.epoch(row, state.best_top1, left)

    progress.close()
    tensorboard.close()
    return {
        "top1_last": row["test_top1"],
        "top1_best": state.best_top1,
        "best_epoch": state.best_epoch,
        "top5_last": row["test_top5"],
        "epochs": state.epoch,
        "seconds": state.seconds,
        "images_per_second": state.images / state.seconds,
    }


def train_epoch(
    objective: nn.Module,
    teacher: Model | None,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    engine: Engine,
    progress: Progress | None = None,
    initialising: bool = False,
) -> dict[str, float]:
    """One pass over the training images. Returns the means of the loss and its terms, and top-1 in percent.

    The objective is an :class:`Objective`, or what the engine made of it for several processes. In a method's
    initialisation there is no top-1.

    Nothing in a step waits for the device; the means at the end do, once.
    """
    objective.train()
    sums = Sums()
    for batch in batches:
        with engine.autocast():
            with torch.no_grad():
                seen = teacher(batch.image) if teacher is not None else None
            step = objective(batch, seen, initialising)
        engine.backward(step.total)
        optimizer.step()
        optimizer.zero_grad()

        count = len(batch.label)
        with torch.no_grad():
            sums.add({name: count * value for name, value in {"loss": step.total, **step.terms}.items()}, count)
            if step.logits is not None:
                sums.add(hits(ranked(step.logits), batch.label))
        if progress is not None:
            progress.images(count * engine.share.processes)
    found = sums.means(engine)
    top1 = {"train_top1": 100 * found["top1"]} if "top1" in found else {}
    return {name: found[name] for name in found if name not in ("top1", "top5")} | top1


def _diverged(run: RunFolder, epoch: int, broken: list[str]) -> str:
    begun = (run.checkpoints / "last.pt").is_file()
    kept = f"epoch {epoch} is kept in {run.checkpoints / 'last.pt'}" if begun else "nothing was learnt before"
    return (
        f"the loss is no longer a number in epoch {epoch + 1} ({', '.join(broken)}); {kept}; "
        "start over with --fresh and a lower --lr"
    )
