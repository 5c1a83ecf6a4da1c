"""The jobs: train a network, distil one, test one. Each puts parts together; the first two leave a run folder."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn

import hkd
from hkd.config import STUDENT, TEACHER, DistillConfig, EvaluateConfig, TrainConfig
from hkd.data import (
    STREAM_SIZE,
    ArrayDataset,
    Dataset,
    as_dataset,
    limit,
    list_datasets,
    load_dataset,
    make_loader,
    prepare,
)
from hkd.errors import RequestError, TrainingError
from hkd.methods import Method, Weights, create_method, methods
from hkd.methods.kd import KD
from hkd.models import Model, create_model, list_models, load_checkpoint, save_model, wrap_model
from hkd.models.fold import fold_batch_norms
from hkd.models.weights import existing, read_about
from hkd.training.engine import Engine
from hkd.training.loop import fit
from hkd.training.metrics import Evaluation, evaluate_model
from hkd.training.objective import Objective
from hkd.training.run_folder import RunFolder


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
    data = data or _data(config, train_data, test_data, engine)
    _check_shares(config, data, engine)
    network = _trained_network(config, model, data)
    data = data.normalised_for(network)
    run = RunFolder(config.run, writes=engine.is_main)
    with _opened(run, config, _resolved_training(config, network, data), engine, fresh):
        return _run(config, run, "model.safetensors", network, None, Objective(network), data, engine)


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
    data = data or _data(config, train_data, test_data, engine)
    _check_shares(config, data, engine)
    parts = _parts(config, student, teacher, data)
    network, teacher_model = parts.student, parts.teacher
    data = data.normalised_for(teacher_model if teacher_model.normalisation else network)
    run = RunFolder(config.run, writes=engine.is_main)
    with _opened(run, config, _resolved_distillation(config, parts, data), engine, fresh):
        if not parts.teacher_is_trained and run.summary is None:
            _train_teacher(config, teacher_model, data)
            engine = Engine(config.device, config.precision, config.seed)
        if run.summary is None and engine.is_main:
            _tell_pairs(parts)
        objective = Objective(network, parts.method, parts.weights, config.kd_temperature)
        return _run(config, run, "student.safetensors", network, teacher_model, objective, data, engine)


def check_request(config: TrainConfig, data: Data) -> bool:
    """Builds what a run is made of and trains nothing. Raises what :func:`train` or :func:`distill` would.

    Returns:
        Whether a teacher is needed that is yet to be trained.
    """
    config.check()
    if isinstance(config, DistillConfig):
        return not _parts(config, None, None, data).teacher_is_trained
    _trained_network(config, None, data)
    return False


def check_continuation(config: TrainConfig, data: Data) -> None:
    """Raises :class:`RequestError` where the run folder holds a run that was asked for differently."""
    if isinstance(config, DistillConfig):
        resolved = _resolved_distillation(config, _parts(config, None, None, data), data)
    else:
        resolved = _resolved_training(config, _trained_network(config, None, data), data)
    RunFolder(config.run).check(resolved, _defaults(config))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Tests a network on the evaluation split of a data set, as its file says that it was trained."""
    config.check()
    found = find_trained(config.checkpoint, config.model)
    engine = Engine(config.device, config.precision)
    data = open_test(config, found)
    model = create_model(found.name, data.info.num_classes)
    load_checkpoint(model, found.weights)
    workers = _workers(config.workers)
    data = prepare(data, None, workers)
    loader = make_loader(data, config.batch_size, engine.device, train=False, workers=workers, share=engine.share)
    return evaluate_model(model.to(engine.device), loader, engine)


@dataclass(frozen=True)
class Trained:
    """Where a trained network is, and what is known of it.

    Attributes:
        name: of the network.
        weights: the file with its weights.
        about: what stands beside them: classes, mean, std, image_size and more; empty for files of other origin.
        asked: the configuration of its run; empty where there is no run folder.
    """

    name: str
    weights: Path
    about: dict[str, Any]
    asked: dict[str, Any]


def find_trained(checkpoint: str, model: str | None = None) -> Trained:
    """Looks into a run folder or a file of weights.

    Args:
        checkpoint: the folder or file.
        model: the network in it, where it does not say.
    """
    path, asked = Path(checkpoint), {}
    if path.is_dir():
        asked = yaml.safe_load(existing(path / "config.yaml").read_text())
        path = _weights_file(path)
    about = read_about(path)
    name = model or about.get("model")
    if name is None:
        raise RequestError(f"model: {path} does not say which network it holds; name it with --model")
    if model is None and ":" not in name and name not in list_models():
        raise RequestError(f"model: {path} holds an own network, {name}; name its factory with --model module:callable")
    return Trained(name, path, about, asked)


def open_test(config: EvaluateConfig, found: Trained) -> Dataset:
    """The images to test a trained network on, in the classes and the normalisation that it learnt."""
    path, about, asked = found.weights, found.about, found.asked
    dataset = config.dataset or asked.get("dataset") or about.get("dataset")
    if dataset is None or (config.dataset is None and ":" not in dataset and dataset not in list_datasets()):
        own = "" if dataset is None else f"; {path} was trained on an own one, {dataset}"
        raise RequestError(f"dataset: name the data set to test on{own}")
    size = config.image_size or about.get("image_size")
    root = config.data_root or asked.get("data_root") or "data"
    data = load_dataset(dataset, "test", root, size)
    learnt: list[str] = about.get("classes") or list(data.info.classes)
    of_limited_run = list(data.info.classes[: len(learnt)]) == learnt
    data = limit(data, config.limit_classes or (len(learnt) if of_limited_run else None), None)
    if list(data.info.classes) != learnt:
        raise RequestError(f"dataset: {path} learnt other classes: {_first_difference(data, learnt)}")
    if "mean" in about:
        data.info = dataclasses.replace(data.info, mean=tuple(about["mean"]), std=tuple(about["std"]))
    return data


@dataclass(frozen=True)
class Data:
    """Both splits of a data set as a run uses them, and the name that its configuration gets."""

    name: str
    train: Dataset
    test: Dataset

    @property
    def image_size(self) -> int:
        return self.train.info.image_size or STREAM_SIZE

    def normalised_for(self, network: Model) -> Data:
        """The same data in the normalisation that a trained network expects."""
        if network.normalisation is None:
            return self
        mean, std = network.normalisation
        parts = copy.copy(self.train), copy.copy(self.test)  # the caller's keep their own
        for part in parts:
            part.info = dataclasses.replace(part.info, mean=mean, std=std)
        return Data(self.name, *parts)


def open_data(config: TrainConfig) -> Data:
    """The data set that a configuration names, for several runs to share."""
    return _data(config, None, None)


def _data(config: TrainConfig, train: Any, test: Any, engine: Engine | None = None) -> Data:
    with engine.first_of_node() if engine is not None else nullcontext():
        return _both_splits(config, train, test)


def _both_splits(config: TrainConfig, train: Any, test: Any) -> Data:
    """Both splits, cut down to what was asked for and decoded if small. Training decides the size of the images."""
    if (train is None) != (test is None):
        raise RequestError("train_data: pass both train_data and test_data, or neither")
    name = config.dataset
    if train is None:
        train = load_dataset(name, "train", config.data_root, config.image_size)
        test = load_dataset(name, "test", config.data_root, train.info.image_size or STREAM_SIZE)
    else:
        train = as_dataset(train, config.image_size)
        test = as_dataset(test, train.info.image_size or STREAM_SIZE)
        name = train.info.name
    if train.info.classes != test.info.classes:
        raise RequestError(f"dataset: {name} has {train.info.num_classes} classes to train on, others to test on")
    cache, workers = Path(config.run).parent / "cache", _workers(config.workers)
    train = limit(train, config.limit_classes, config.limit_train, config.train_fraction)
    test = limit(test, config.limit_classes, None)
    train, test = (prepare(part, cache, workers, config.bad_images) for part in (train, test))
    return Data(name, train, test)


def _network(field: str, name: str, own: nn.Module | None, data: Data, pretrained: bool) -> Model:
    """A network that takes the data set's images and tells its classes apart."""
    classes = data.train.info.num_classes
    model = (
        create_model(name, classes, pretrained=pretrained)
        if own is None
        else wrap_model(own, image_size=data.image_size)
    )
    found = model.info_at(data.image_size).num_classes
    if found != classes:
        raise RequestError(f"{field}: {model.name or name} tells {found} classes apart, {data.name} has {classes}")
    return model


def _trained_network(config: TrainConfig, own: nn.Module | None, data: Data) -> Model:
    """The network that :func:`train` trains."""
    name, pretrained = config.trained_network()
    return _network(config.trained_role(), name or STUDENT, own, data, pretrained)


class _Parts(NamedTuple):
    """What a distillation is made of."""

    student: Model
    teacher: Model
    teacher_is_trained: bool
    method: Method[Any]
    weights: Weights


def _parts(config: DistillConfig, student: nn.Module | None, teacher: nn.Module | None, data: Data) -> _Parts:
    weights = _weights(config)
    network = _network("student", config.student or STUDENT, student, data, config.student_pretrained)
    teacher_model, trained = _teacher(config, teacher, data)
    method = create_method(
        config.method_name,
        student=network,
        teacher=teacher_model,
        num_samples=len(data.train),
        labels=data.train.labels,
        image_size=data.image_size,
        seed=config.seed,
        **config.settings,
    )
    return _Parts(network, teacher_model, trained, method, weights)


def _tell_pairs(parts: _Parts) -> None:
    """Says which stage maps are compared, where it does not go without saying."""
    if any(s != t for s, t in parts.method.pairs):
        told = ", ".join(f"{s} with {t}" for s, t in parts.method.pairs)
        print(f"stage maps of {parts.student.name} and {parts.teacher.name}: {told}", file=sys.stderr)


def _teacher(config: DistillConfig, own: nn.Module | None, data: Data) -> tuple[Model, bool]:
    """The teacher, and whether it is trained: somebody's own, from a checkpoint, or with a library's weights."""
    own = copy.deepcopy(own)  # its batch norms are folded, and the caller's stay
    if config.teacher_checkpoint is None:
        model = _network("teacher", config.teacher or TEACHER, own, data, config.teacher_pretrained)
        # Other data, even of as many classes, is not what a library's classifier was trained on.
        return model, own is not None or (model.pretrained_classifier and config.dataset == "imagenet")

    path = Path(config.teacher_checkpoint)
    path = _weights_file(path) if path.is_dir() else path
    about = read_about(path)
    name = config.teacher or about.get("model")
    if own is None and name is None:
        raise RequestError(f"teacher: {path} does not say which network it holds; name it with --teacher")
    classes = list(data.train.info.classes)
    if about.get("num_classes", len(classes)) != len(classes):
        raise RequestError(
            f"teacher_checkpoint: {path} tells {about['num_classes']} classes apart, {data.name} has {len(classes)}"
        )
    if about.get("classes", classes) != classes:
        raise RequestError(
            f"teacher_checkpoint: {path} learnt other classes: {_first_difference(data.train, about['classes'])}"
        )
    model = _network("teacher", name or "", own, data, False)
    load_checkpoint(model, path)
    if "mean" in about:
        model.normalisation = (tuple(about["mean"]), tuple(about["std"]))
    return model, True


def _first_difference(data: Dataset, learnt: list[str]) -> str:
    for mine, theirs in zip(data.info.classes, learnt, strict=False):
        if mine != theirs:
            return f"{theirs!r} where {data.info.name} has {mine!r}"
    return f"{len(learnt)} where {data.info.name} has {data.info.num_classes}"


def _train_teacher(config: DistillConfig, teacher: Model, data: Data) -> None:
    """Trains the teacher as a run of its own, in a folder of the student's."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    changed = {"run": str(Path(config.run) / "teacher"), "teacher": teacher.name, "student": None, "role": "teacher"}
    first = TrainConfig(**shared | changed | {"lr": config.teacher_lr or config.lr})
    # Into the same object, which the method may know.
    load_checkpoint(teacher, train(first, data=data).weights)


def _weights(config: DistillConfig) -> Weights:
    """γ, α and β as asked for, or as the method's paper has them."""
    kind = methods[config.method_name]
    if kind is KD and config.method_weight:
        raise RequestError("method_weight: kd is the classical term, whose weight is kd_weight")
    own = kind.weights
    own_kd = 1.0 if config.method != config.method_name else own.kd
    weights = Weights(
        ce=own.ce if config.ce_weight is None else config.ce_weight,
        kd=own_kd if config.kd_weight is None else config.kd_weight,
        method=own.method if config.method_weight is None else config.method_weight,
    )
    if not any(weights):
        raise RequestError("method_weight: all weights are 0, so there is nothing to learn from")
    return weights


def _defaults(config: TrainConfig) -> dict[str, Any]:
    """What a run folder of an earlier version means by not naming a field."""
    return {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}


def _resolved_training(config: TrainConfig, network: Model, data: Data) -> dict[str, Any]:
    """What stands in ``config.yaml``: what was asked for, with what was left open."""
    role = config.trained_role()
    found = {"dataset": data.name, role: network.name, "role": role, "milestones": list(config.milestones)}
    return asdict(config) | found


def _resolved_distillation(config: DistillConfig, parts: _Parts, data: Data) -> dict[str, Any]:
    """Likewise, with the weights and the settings of the method."""
    kind = methods[config.method_name]
    resolved = asdict(config) | {"dataset": data.name, "student": parts.student.name, "teacher": parts.teacher.name}
    resolved |= {"method": config.method_name, "milestones": list(config.milestones)}
    resolved |= {f"{name}_weight": weight for name, weight in parts.weights._asdict().items()}
    del resolved["settings"], resolved["role"]
    if kind.settings:
        resolved[kind.settings] = asdict(kind.Config(**config.settings))
    return resolved


def _run(
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

    workers = _workers(config.workers)
    batch_size, lr = _for_all_processes(config, engine)
    config = dataclasses.replace(config, batch_size=batch_size, lr=lr)
    test = make_loader(data.test, max(256, batch_size), engine.device, train=False, workers=workers, share=engine.share)
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
    origin = {"dataset": data.train.fingerprint}
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
    summary = fit(objective, teacher, training, test, config, engine, run, about, title, origin)
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
def _opened(
    run: RunFolder, config: TrainConfig, resolved: dict[str, Any], engine: Engine, fresh: bool
) -> Iterator[None]:
    """Around work in a run folder, in which one process writes and which the others find as it has prepared it.

    Errors of the machine come out as :class:`TrainingError`, in words.
    """
    with engine.first_of_all():
        run.open(resolved, _defaults(config), fresh=fresh)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(
                f"out of memory with {config.batch_size} images a step on {engine.device}; lower --batch-size, use "
                "--precision bf16, or a method with smaller banks (--holistic.bank-dtype bfloat16)"
            ) from error
        raise
    except OSError as error:
        raise TrainingError(
            f"cannot read or write {error.filename or run.path} ({error.strerror or error}); the same command goes on "
            "from the last checkpoint"
        ) from error
    finally:
        run.close()


def _for_all_processes(config: TrainConfig, engine: Engine) -> tuple[int, float]:
    """Images a step of all processes together, and the learning rate."""
    times = engine.share.processes if config.scale_with_processes else 1
    return config.batch_size * times, config.lr * times


def _check_shares(config: TrainConfig, data: Data, engine: Engine) -> None:
    """Raises :class:`RequestError` where the processes would not have equal work, of two images a step at least."""
    processes, batch_size = engine.share.processes, _for_all_processes(config, engine)[0]
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


def _workers(asked: int | None) -> int:
    return min(8, os.cpu_count() or 1) if asked is None else asked


def _weights_file(run: Path) -> Path:
    """The file with the trained network in a run folder."""
    return next(iter(sorted(run.glob("*.safetensors"))), run / "student.safetensors")
