"""The training loop. It knows no method, model or data set by name."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch

from hkd.config import TrainConfig
from hkd.data.loader import Loader
from hkd.errors import TrainingError
from hkd.models.base import Model
from hkd.models.weights import save_model
from hkd.training.checkpoint import Checkpoint
from hkd.training.engine import Engine
from hkd.training.metrics import Sums, evaluate_model, hits
from hkd.training.objective import Objective
from hkd.training.progress import Progress
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
    objective, optimizer = engine.prepare(objective, optimizer)
    checkpoint = Checkpoint(run, objective, optimizer, engine, images)
    state = checkpoint.resume()
    if config.compile:
        student.compile()
        if teacher is not None:
            teacher.compile()
    tensorboard = _tensorboard(run, config.tensorboard, state.epoch)
    progress = Progress(title, config.epochs * images, state.epoch * images, config.epochs)
    row = run.rows()[-1] if state.epoch else {}  # resuming has made sure of it

    for epoch in range(state.epoch, config.epochs):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(epoch)
        means = train_epoch(objective, teacher, train.epoch(epoch), optimizer, engine, progress)
        seconds = time.perf_counter() - started
        found = evaluate_model(student, test, engine)
        row = {
            "epoch": epoch + 1,
            "lr": config.lr_at(epoch),
            **means,
            "test_top1": found.top1,
            "test_top5": found.top5,
            "test_loss": found.loss,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        if broken := [name for name, value in row.items() if not math.isfinite(value)]:
            progress.close()
            raise TrainingError(_diverged(run, epoch, broken))

        state.epoch = epoch + 1
        state.seconds += time.perf_counter() - started
        state.images += images
        if found.top1 > state.best_top1:
            state.best_top1, state.best_epoch = found.top1, epoch + 1
            save_model(student, run.checkpoints / "best.safetensors", **about, epoch=epoch + 1, top1=found.top1)
        run.log(row)
        if tensorboard is not None:
            for name, value in row.items():
                tensorboard.add_scalar(name, value, epoch + 1)
        checkpoint.save(state)
        progress.epoch(row, state.best_top1, state.seconds / state.epoch * (config.epochs - state.epoch))

    progress.close()
    if tensorboard is not None:
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
    objective: Objective,
    teacher: Model | None,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    engine: Engine,
    progress: Progress | None = None,
) -> dict[str, float]:
    """One pass over the training images. Returns the means of the loss and its terms, and top-1 in percent.

    Nothing in a step waits for the device; the means at the end do, once.
    """
    objective.train()
    sums = Sums()
    for batch in batches:
        with engine.autocast():
            with torch.no_grad():
                seen = teacher(batch.image) if teacher is not None else None
            total, terms, logits = objective(batch, seen)
        engine.backward(total)
        optimizer.step()
        optimizer.zero_grad()

        count = len(batch.label)
        with torch.no_grad():
            means = {"loss": total, **terms}
            sums.add({name: count * value for name, value in means.items()} | hits(logits, batch.label), count)
        if progress is not None:
            progress.images(count)
    found = sums.means()
    return {name: found[name] for name in found if name not in ("top1", "top5")} | {"train_top1": 100 * found["top1"]}


def _diverged(run: RunFolder, epoch: int, broken: list[str]) -> str:
    kept = f"epoch {epoch} is kept in {run.checkpoints / 'last.pt'}" if epoch else "nothing was learnt before"
    return (
        f"the loss is no longer a number in epoch {epoch + 1} ({', '.join(broken)}); {kept}; "
        "start over with --fresh and a lower --lr"
    )


def _tensorboard(run: RunFolder, wanted: bool, epoch: int) -> Any:
    if not wanted:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=epoch + 1)
