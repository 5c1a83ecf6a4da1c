"""A run from its folder's opening to its result."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hkd
from hkd.config import TrainConfig
from hkd.data import ArrayDataset, make_loader
from hkd.data.open import Data, worker_count
from hkd.distiller import Objective
from hkd.errors import RequestError, TrainingError
from hkd.jobs.parts import defaults
from hkd.metrics import evaluate_model
from hkd.models import Model, load_checkpoint, save_model
from hkd.models.fold import fold_batch_norms
from hkd.runtime.engine import Engine
from hkd.runtime.run_folder import RunFolder
from hkd.trainer import Training


@dataclass(frozen=True)
class Result:
    """What a job leaves.

    Attributes:
        run: the run folder.
        model: the trained network, in evaluation mode.
        summary: what stands in ``summary.json``.
        weights: the file with the network of the last epoch.
        skipped: whether the run was finished before, and nothing was done.
    """

    run: Path
    model: Model
    summary: dict[str, Any]
    weights: Path
    skipped: bool = False


def carry_out(
    config: TrainConfig,
    run: RunFolder,
    file_name: str,
    student: Model,
    teacher: Model | None,
    objective: Objective,
    data: Data,
    engine: Engine,
) -> Result:
    """Trains, unless the run folder says that it is done, and writes the result."""
    file = run.path / file_name
    if run.summary is not None:
        load_checkpoint(student, file)
        return Result(run.path, student.to(engine.device).eval(), run.summary, file, skipped=True)

    workers = worker_count(config.workers)
    batch_size, lr = for_all_processes(config, engine)
    config = dataclasses.replace(config, batch_size=batch_size, lr=lr)
    test = make_loader(
        data.test,
        max(256, batch_size),
        engine.device,
        train=False,
        workers=workers,
        share=engine.share,
        bad_images=config.bad_images,
    )
    training = make_loader(
        data.train,
        batch_size,
        engine.device,
        train=True,
        flip=config.flip,
        seed=config.seed,
        workers=workers,
        share=engine.share,
        bad_images=config.bad_images,
    )
    # The loaders' batches are channels-last; weights in the same order spare the convolutions a change.
    student.to(engine.device).to(memory_format=torch.channels_last)
    extra: dict[str, Any] = {}
    origin = {"dataset": data.train.fingerprint, "batch_size": str(config.batch_size)}
    if teacher is not None:
        origin["teacher"] = _digest(teacher)
        teacher.to(engine.device).to(memory_format=torch.channels_last).eval()
        fold_batch_norms(teacher, data.image_size)
        extra["teacher_top1"] = evaluate_model(teacher, test, engine).top1
    about = {
        "classes": list(data.train.info.classes),
        "mean": list(data.train.info.mean),
        "std": list(data.train.info.std),
        "image_size": data.image_size,
        "dataset": data.name,
    }
    if engine.is_main:
        _tell_memory(objective, teacher, data, engine)
    title = f"{Path(config.run).name} ({student.name})"
    summary = Training(objective, teacher, training, test, config, engine, run, about, title, origin).run()
    found = evaluate_model(student, test, engine)
    run.save_predictions(found.predicted, found.label)
    if run.writes:
        save_model(student, file, **about, epoch=summary["epochs"], top1=summary["top1_last"])
    summary |= {"top1_last": found.top1, "top5_last": found.top5}
    summary |= extra | {
        "student": student.name,
        "parameters": student.info_at(data.image_size).parameters,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "device": str(engine.device),
        "machine": engine.machine,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hkd": hkd.__version__,
    }
    run.finish(summary)
    engine.wait()  # the others may read it next
    return Result(run.path, student.eval(), summary, file)


@contextmanager
def opened(
    run: RunFolder, config: TrainConfig, resolved: dict[str, Any], engine: Engine, fresh: bool
) -> Iterator[None]:
    """Around work in a run folder, in which one process writes and which the others find as it has prepared it.

    Errors of the machine come out as :class:`TrainingError`, in words.
    """
    with engine.first_of_all():
        run.open(resolved, defaults(config), fresh=fresh)
    if not engine.alike(int(run.summary is not None)):
        raise RequestError(
            f"run: some processes find {run.path} finished, others do not; it has to be on a shared disk"
        )
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(
                f"out of memory with {config.batch_size} images a step on {engine.device}; lower --batch-size, or use "
                "--precision bf16; HKD and CRD keep smaller banks with --holistic.bank-dtype, --crd.bank-dtype bfloat16"
            ) from error
        if "DataLoader worker" in str(error):  # torch notices it wherever the run is
            reason = " ".join(str(error).split()).split(". ")[0]
            raise TrainingError(
                f"a process that decodes images died ({reason}); the same command goes on from the last checkpoint; "
                "if memory ran out, lower --workers or --batch-size"
            ) from error
        raise
    except OSError as error:
        raise TrainingError(
            f"cannot read or write {error.filename or run.path} ({error.strerror or error}); the same command goes on "
            "from the last checkpoint"
        ) from error
    finally:
        run.close()


def for_all_processes(config: TrainConfig, engine: Engine) -> tuple[int, float]:
    """Images a step of all processes together, and the learning rate."""
    times = engine.share.processes if config.scale_with_processes else 1
    return config.batch_size * times, config.lr * times


def check_shares(config: TrainConfig, data: Data, engine: Engine) -> None:
    """Raises :class:`RequestError` where the processes would not have equal work, of two images a step at least."""
    processes, batch_size = engine.share.processes, for_all_processes(config, engine)[0]
    if processes > 1 and (batch_size % processes or batch_size < 2 * processes):
        raise RequestError(
            f"batch_size: {processes} processes share every batch in equal parts of 2 images or more; got {batch_size}"
        )
    for split in (data.train, data.test):
        if processes > 1 and len(split) < 2 * processes:
            raise RequestError(f"dataset: {data.name} has a split of {len(split)} images for {processes} processes")


def _digest(model: Model) -> str:
    """Tells one network's weights from another's."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tell_memory(objective: Objective, teacher: Model | None, data: Data, engine: Engine) -> None:
    """Says what will lie on the device before a step is made, in each process."""
    learnt = sum(p.nbytes for p in objective.parameters())
    parts = {"weights, gradients and momentum": 3 * learnt}
    if teacher is not None:
        parts["teacher"] = sum(p.nbytes for p in teacher.parameters())
    if objective.method is not None:
        parts["memory banks and tables"] = sum(b.nbytes for b in objective.method.buffers())
    images = data.train.images.nbytes if isinstance(data.train, ArrayDataset) else 0
    told = [f"{name} {_megabytes(size)}" for name, size in parts.items()]
    told.append(f"training images {_megabytes(images)}" if images else "training images streamed")
    print(f"memory on {engine.device}: {', '.join(told)}; activations come on top", file=sys.stderr)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
