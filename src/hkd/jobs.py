"""The jobs: train a network, distil one, test one. Each puts parts together and leaves a run folder."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import hkd
from hkd.config import DistillConfig, EvaluateConfig, TrainConfig
from hkd.data import STREAM_SIZE, Dataset, as_dataset, limit, load_dataset, make_loader, prepare
from hkd.errors import RequestError
from hkd.methods import Weights, create_method, methods
from hkd.models import Model, create_model, load_checkpoint, save_model, wrap_model
from hkd.models.weights import read_about
from hkd.training.engine import Engine
from hkd.training.loop import fit
from hkd.training.metrics import Evaluation, evaluate_model
from hkd.training.objective import LABELS_ALONE, Objective
from hkd.training.run_folder import RunFolder


@dataclass(frozen=True)
class Result:
    """What a job leaves.

    Attributes:
        run: the run folder.
        model: the trained network, in evaluation mode.
        summary: what stands in ``summary.json``.
        skipped: whether the run was finished before, and nothing was done.
    """

    run: Path
    model: Model
    summary: dict[str, Any]
    skipped: bool = False


def train(
    config: TrainConfig, model: nn.Module | None = None, *, train_data: Any = None, test_data: Any = None,
    fresh: bool = False,
) -> Result:  # fmt: skip
    """Trains one network with cross-entropy: a teacher, or a student alone.

    Args:
        config: what to train on what, and how.
        model: an own network, instead of the one that the configuration names.
        train_data, test_data: own data sets, instead of the one that the configuration names; see :func:`as_dataset`.
        fresh: start over; what the run folder holds is kept under another name.
    """
    config.check()
    if config.student and config.teacher and model is None:
        raise RequestError(
            f"student: `train` trains one network; got student {config.student} and teacher {config.teacher}"
        )
    name = config.teacher or config.student or "resnet8"
    pretrained = config.teacher_pretrained if config.teacher else config.student_pretrained
    data = _data(config, train_data, test_data)
    engine = Engine(config.device, config.precision, config.seed)
    network = _network("teacher" if config.teacher else "student", name, model, data, pretrained)
    resolved = asdict(config) | {"dataset": data.name, ("teacher" if config.teacher else "student"): network.name}
    return _run(config, _open(config, resolved, fresh), network, None, None, LABELS_ALONE, data, engine)


def distill(
    config: DistillConfig, student: nn.Module | None = None, teacher: nn.Module | None = None, *,
    train_data: Any = None, test_data: Any = None, fresh: bool = False,
) -> Result:  # fmt: skip
    """Distils a student from a teacher.

    Without a checkpoint or an own network, the teacher is trained first, with the same settings, in the folder
    ``teacher`` of the run.

    Args:
        config: who learns from whom on what, and how.
        student, teacher: own networks, instead of those that the configuration names; the teacher trained.
        train_data, test_data: own data sets, instead of the one that the configuration names; see :func:`as_dataset`.
        fresh: start over; what the run folder holds is kept under another name.
    """
    config.check()
    kind = methods[config.method]
    weights = Weights(
        ce=kind.weights.ce if config.ce_weight is None else config.ce_weight,
        kd=kind.weights.kd if config.kd_weight is None else config.kd_weight,
        method=kind.weights.method if config.method_weight is None else config.method_weight,
    )
    if not any(weights):
        raise RequestError("method_weight: all weights are 0, so there is nothing to learn from")
    data = _data(config, train_data, test_data)
    # Everything is built before anything is trained: a bad request must not cost a teacher's training.
    engine = Engine(config.device, config.precision, config.seed)
    network = _network("student", config.student or "resnet8", student, data, config.student_pretrained)
    teacher_model, trained = _teacher(config, teacher, data)
    method = create_method(
        config.method, student=network, teacher=teacher_model, num_samples=len(data.train), labels=data.train.labels,
        image_size=data.image_size, seed=config.seed, **config.settings,
    )  # fmt: skip
    resolved = asdict(config) | {
        "dataset": data.name, "student": network.name, "teacher": teacher_model.name,
        "method_weight": weights.method, "kd_weight": weights.kd, "ce_weight": weights.ce,
    }  # fmt: skip
    del resolved["settings"]
    if kind.settings:
        resolved[kind.settings] = asdict(kind.Config(**config.settings))
    run = _open(config, resolved, fresh)
    if not trained and run.summary is None:
        teacher_model = _train_teacher(config, teacher_model, data)
        engine = Engine(config.device, config.precision, config.seed)
    return _run(config, run, network, teacher_model, method, weights, data, engine)


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Tests a network on the evaluation split of a data set."""
    config.check()
    path = Path(config.checkpoint)
    if path.is_dir():
        asked = yaml.safe_load(_file(path / "config.yaml").read_text())
        opened = {k: asked.get(k) for k in ("dataset", "image_size", "limit_classes") if getattr(config, k) is None}
        config = dataclasses.replace(config, **opened)
        path = next(iter(sorted(path.glob("*.safetensors"))), path / "student.safetensors")
    about = read_about(_file(path))
    name = config.model or about.get("model")
    if name is None:
        raise RequestError(f"model: {path} does not say which network it holds; name it with --model")
    if config.dataset is None:
        raise RequestError("dataset: name the data set to test on")
    engine = Engine(config.device, config.precision)
    dataset = _part(load_dataset(config.dataset, "test", config.data_root, config.image_size), config)
    if "mean" in about:  # as the network was trained
        dataset.info = dataclasses.replace(dataset.info, mean=tuple(about["mean"]), std=tuple(about["std"]))
    model = create_model(name, dataset.info.num_classes)
    load_checkpoint(model, path)
    loader = make_loader(dataset, config.batch_size, engine.device, train=False, workers=_workers(config.workers))
    return evaluate_model(model.to(engine.device), loader, engine)


@dataclass(frozen=True)
class _Data:
    name: str
    train: Dataset
    test: Dataset
    image_size: int


def _data(config: TrainConfig, train: Any, test: Any) -> _Data:
    """Both splits, cut down to what was asked for and decoded if small."""
    if (train is None) != (test is None):
        raise RequestError("train_data: pass both train_data and test_data, or neither")
    name = config.dataset
    if train is None:
        train = load_dataset(name, "train", config.data_root, config.image_size)
        test = load_dataset(name, "test", config.data_root, config.image_size)
    else:
        train, test = as_dataset(train, config.image_size), as_dataset(test, config.image_size)
        name = train.info.name
    cache = Path(config.run).parent / "cache"
    train = prepare(limit(train, config.limit_classes, config.limit_train), cache, _workers(config.workers))
    test = prepare(limit(test, config.limit_classes, None), cache, _workers(config.workers))
    if train.info.num_classes != test.info.num_classes:
        raise RequestError(f"dataset: {train.info.num_classes} classes to train on, {test.info.num_classes} to test on")
    return _Data(name, train, test, train.info.image_size or STREAM_SIZE)


def _network(field: str, name: str, own: nn.Module | None, data: _Data, pretrained: bool) -> Model:
    """A network that tells the data set's classes apart."""
    classes = data.train.info.num_classes
    if own is None:
        return create_model(name, classes, pretrained=pretrained)
    model = wrap_model(own, image_size=data.image_size)
    found = model.info_at(data.image_size).num_classes
    if found != classes:
        raise RequestError(f"{field}: {model.name or name} tells {found} classes apart, {data.name} has {classes}")
    return model


def _teacher(config: DistillConfig, own: nn.Module | None, data: _Data) -> tuple[Model, bool]:
    """The teacher, and whether it is trained: somebody's own, from a checkpoint, or with the library's weights."""
    if own is not None:
        return _network("teacher", "teacher", own, data, False), True
    classes = data.train.info.num_classes
    if config.teacher_checkpoint is not None:
        about = read_about(config.teacher_checkpoint)
        name = config.teacher or about.get("model") or "resnet20"
        if about and about["num_classes"] != classes:
            raise RequestError(
                f"teacher_checkpoint: {config.teacher_checkpoint} tells {about['num_classes']} classes apart, "
                f"{data.name} has {classes}"
            )
        model = create_model(name, classes)
        load_checkpoint(model, config.teacher_checkpoint)
        return model, True
    model = create_model(config.teacher or "resnet20", classes, pretrained=config.teacher_pretrained)
    return model, config.teacher_pretrained and classes == 1000


def _train_teacher(config: DistillConfig, teacher: Model, data: _Data) -> Model:
    """The teacher as a run of its own, in a folder of the student's."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    changed = {"run": str(Path(config.run) / "teacher"), "teacher": teacher.name, "student": None}
    first = TrainConfig(**shared | changed | {"lr": config.teacher_lr or config.lr})
    return train(first, train_data=data.train, test_data=data.test).model


def _open(config: TrainConfig, resolved: dict[str, Any], fresh: bool) -> RunFolder:
    run = RunFolder(config.run)
    run.open(resolved | {"milestones": list(config.milestones)}, fresh=fresh)
    return run


def _run(
    config: TrainConfig, run: RunFolder, student: Model, teacher: Model | None, method: Any, weights: Weights,
    data: _Data, engine: Engine,
) -> Result:  # fmt: skip
    """Trains, unless the run folder says that it is done, and writes the result."""
    weights_file = run.path / ("student.safetensors" if isinstance(config, DistillConfig) else "model.safetensors")
    if run.summary is not None:
        load_checkpoint(student, weights_file)
        return Result(run.path, student.to(engine.device).eval(), run.summary, skipped=True)

    for network in (student, teacher):
        if network is not None:
            network.to(engine.device)
            if config.channels_last:
                network.to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    workers = _workers(config.workers)
    train_loader = make_loader(
        data.train, config.batch_size, engine.device, train=True, seed=config.seed, workers=workers
    )
    test_loader = make_loader(data.test, max(256, config.batch_size), engine.device, train=False, workers=workers)
    info = data.train.info
    about = {
        "classes": list(info.classes), "mean": list(info.mean), "std": list(info.std), "image_size": data.image_size,
        "dataset": data.name,
    }  # fmt: skip
    objective = Objective(student, method, weights, getattr(config, "kd_temperature", 4.0))
    title = f"{Path(config.run).name} ({student.name})"
    summary = fit(objective, teacher, train_loader, test_loader, config, engine, run, about, title)
    save_model(student, weights_file, **about, epoch=summary["epochs"], top1=summary["top1_last"])
    summary |= {
        "student": student.name, "parameters": student.info.parameters, "train_images": len(data.train),
        "test_images": len(data.test), "device": str(engine.device), "torch": torch.__version__,
        "python": platform.python_version(), "hkd": hkd.__version__,
    }  # fmt: skip
    run.finish(summary)
    return Result(run.path, student.eval(), summary)


def _part(dataset: Dataset, config: EvaluateConfig) -> Dataset:
    return prepare(limit(dataset, config.limit_classes, None), None, _workers(config.workers))


def _workers(asked: int | None) -> int:
    return min(8, os.cpu_count() or 1) if asked is None else asked


def _file(path: Path) -> Path:
    if not path.is_file():
        raise RequestError(f"checkpoint: no file {path}")
    return path
