"""The jobs that a person asks for. Each puts parts together; the first two leave a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from hkd.config import DistillConfig, EvaluateConfig, TrainConfig
from hkd.data import make_loader, prepare
from hkd.data.open import Data, open_data, worker_count
from hkd.distiller import Objective
from hkd.errors import RequestError
from hkd.jobs.parts import (
    build_parts,
    defaults,
    resolved_distillation,
    resolved_training,
    tell_pairs,
    trained_network,
)
from hkd.jobs.running import Result, carry_out, check_shares, opened
from hkd.metrics import Evaluation, evaluate_model
from hkd.models import Model, create_model, load_checkpoint
from hkd.runtime.engine import Engine
from hkd.runtime.run_folder import RunFolder
from hkd.trained import find_trained, open_test


def train(
    config: TrainConfig,
    model: nn.Module | None = None,
    *,
    train_data: Any = None,
    test_data: Any = None,
    data: Data | None = None,
    fresh: bool = False,
) -> Result:
    """Trains one network with cross-entropy: a teacher, or a student alone.

    Args:
        config: what to train on what, and how.
        model: an own network, instead of the one that the configuration names.
        train_data, test_data: own data sets, instead of the one that the configuration names; see :func:`as_dataset`.
        data: what :func:`open_data` returned for this configuration, so that several runs share it.
        fresh: start over; what the run folder holds is kept under another name.
    """
    config.check()
    engine = Engine(config.device, config.precision, config.seed)
    with engine.first_of_node():  # downloads and decodes for the others
        data = data or open_data(config, train_data, test_data)
    check_shares(config, data, engine)
    network = trained_network(config, model, data)
    data = data.normalised_for(network)
    run = RunFolder(config.run, writes=engine.is_main)
    with opened(run, config, resolved_training(config, network, data), engine, fresh):
        return carry_out(config, run, "model.safetensors", network, None, Objective(network), data, engine)


def distill(
    config: DistillConfig,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    *,
    train_data: Any = None,
    test_data: Any = None,
    data: Data | None = None,
    fresh: bool = False,
) -> Result:
    """Distils a student from a teacher.

    Without a checkpoint or an own network, the teacher is trained first, with the same settings, in the folder
    ``teacher`` of the run.

    Args:
        config: who learns from whom on what, and how.
        student, teacher: own networks, instead of those that the configuration names. The teacher is taken as trained,
            or gets the weights of ``teacher_checkpoint``.
        train_data, test_data: own data sets, instead of the one that the configuration names; see :func:`as_dataset`.
        data: what :func:`open_data` returned for this configuration, so that several runs share it.
        fresh: start over; what the run folder holds is kept under another name.
    """
    config.check()
    if (student is not None and config.student) or (teacher is not None and config.teacher):
        raise RequestError("student: a network is passed or named in the configuration, not both; so is a teacher")
    if student is not None and student is teacher:
        raise RequestError("student: the same network is passed as student and as teacher")
    # Everything is built before anything is trained: a bad request must not cost a teacher's training.
    engine = Engine(config.device, config.precision, config.seed)
    with engine.first_of_node():  # downloads and decodes for the others
        data = data or open_data(config, train_data, test_data)
    check_shares(config, data, engine)
    parts = build_parts(config, student, teacher, data)
    network, teacher_model = parts.student, parts.teacher
    data = data.normalised_for(teacher_model if teacher_model.normalisation else network)
    run = RunFolder(config.run, writes=engine.is_main)
    with opened(run, config, resolved_distillation(config, parts, data), engine, fresh):
        if not parts.teacher_is_trained and run.summary is None:
            _train_teacher(config, teacher_model, data)
            engine = Engine(config.device, config.precision, config.seed)
        if run.summary is None and engine.is_main:
            tell_pairs(parts)
        objective = Objective(network, parts.method, parts.weights, config.kd_temperature)
        return carry_out(config, run, "student.safetensors", network, teacher_model, objective, data, engine)


def _train_teacher(config: DistillConfig, teacher: Model, data: Data) -> None:
    """Trains the teacher as a run of its own, in a folder of the student's."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    changed = {"run": str(Path(config.run) / "teacher"), "teacher": teacher.name, "student": None, "role": "teacher"}
    first = TrainConfig(**shared | changed | {"lr": config.teacher_lr or config.lr})
    # Into the same object, which the method may know.
    load_checkpoint(teacher, train(first, data=data).weights)


def check_request(config: TrainConfig, data: Data) -> bool:
    """Builds what a run is made of and trains nothing. Raises what :func:`train` or :func:`distill` would.

    Returns:
        Whether a teacher is needed that is yet to be trained.
    """
    config.check()
    if isinstance(config, DistillConfig):
        return not build_parts(config, None, None, data).teacher_is_trained
    trained_network(config, None, data)
    return False


def check_continuation(config: TrainConfig, data: Data) -> None:
    """Raises :class:`RequestError` where the run folder holds a run that was asked for differently."""
    if isinstance(config, DistillConfig):
        resolved = resolved_distillation(config, build_parts(config, None, None, data), data)
    else:
        resolved = resolved_training(config, trained_network(config, None, data), data)
    RunFolder(config.run).check(resolved, defaults(config))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Tests a network on the evaluation split of a data set, as its file says that it was trained."""
    config.check()
    found = find_trained(config.checkpoint, config.model)
    engine = Engine(config.device, config.precision)
    data = open_test(config, found)
    model = create_model(found.name, data.info.num_classes)
    load_checkpoint(model, found.weights)
    workers = worker_count(config.workers)
    bad_images = found.asked.get("bad_images", "stop")
    data = prepare(data, None, workers, bad_images)
    if len(data) < engine.share.processes:
        raise RequestError(f"dataset: {len(data)} images cannot be shared by {engine.share.processes} processes")
    loader = make_loader(
        data, config.batch_size, engine.device, train=False, workers=workers, share=engine.share, bad_images=bad_images
    )
    return evaluate_model(model.to(engine.device), loader, engine)
