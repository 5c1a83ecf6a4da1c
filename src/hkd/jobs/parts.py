"""What a run is made of, built before anything is trained: a bad request must not cost a teacher's training."""

from __future__ import annotations

import copy
import dataclasses
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from hkd.config import STUDENT, TEACHER, DistillConfig, TrainConfig
from hkd.data.open import Data
from hkd.errors import RequestError
from hkd.methods import Method, Weights, create_method, methods
from hkd.methods.kd import KD
from hkd.models import Model, create_model, load_checkpoint, wrap_model
from hkd.models.weights import read_about
from hkd.trained import first_difference, weights_file


def build_network(field: str, name: str, own: nn.Module | None, data: Data, pretrained: bool) -> Model:
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


def trained_network(config: TrainConfig, own: nn.Module | None, data: Data) -> Model:
    """The network that :func:`train` trains."""
    name, pretrained = config.trained_network()
    return build_network(config.trained_role(), name or STUDENT, own, data, pretrained)


class Parts(NamedTuple):
    """What a distillation is made of."""

    student: Model
    teacher: Model
    teacher_is_trained: bool
    method: Method[Any]
    weights: Weights


def build_parts(config: DistillConfig, student: nn.Module | None, teacher: nn.Module | None, data: Data) -> Parts:
    weights = weights_of(config)
    network = build_network("student", config.student or STUDENT, student, data, config.student_pretrained)
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
    return Parts(network, teacher_model, trained, method, weights)


def tell_pairs(parts: Parts) -> None:
    """Says which stage maps are compared, where it does not go without saying."""
    if any(s != t for s, t in parts.method.pairs):
        told = ", ".join(f"{s} with {t}" for s, t in parts.method.pairs)
        print(f"stage maps of {parts.student.name} and {parts.teacher.name}: {told}", file=sys.stderr)


def _teacher(config: DistillConfig, own: nn.Module | None, data: Data) -> tuple[Model, bool]:
    """The teacher, and whether it is trained: somebody's own, from a checkpoint, or with a library's weights."""
    own = copy.deepcopy(own)  # its batch norms are folded, and the caller's stay
    if config.teacher_checkpoint is None:
        model = build_network("teacher", config.teacher or TEACHER, own, data, config.teacher_pretrained)
        # Other data, even of as many classes, is not what a library's classifier was trained on.
        return model, own is not None or (model.pretrained_classifier and config.dataset == "imagenet")

    path = Path(config.teacher_checkpoint)
    path = weights_file(path) if path.is_dir() else path
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
            f"teacher_checkpoint: {path} learnt other classes: {first_difference(data.train, about['classes'])}"
        )
    model = build_network("teacher", name or "", own, data, False)
    load_checkpoint(model, path)
    if "mean" in about:
        model.normalisation = (tuple(about["mean"]), tuple(about["std"]))
    return model, True


def weights_of(config: DistillConfig) -> Weights:
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


def defaults(config: TrainConfig) -> dict[str, Any]:
    """What a run folder of an earlier version means by not naming a field."""
    return {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}


def resolved_training(config: TrainConfig, network: Model, data: Data) -> dict[str, Any]:
    """What stands in ``config.yaml``: what was asked for, with what was left open."""
    role = config.trained_role()
    found = {"dataset": data.name, role: network.name, "role": role, "milestones": list(config.milestones)}
    return asdict(config) | found


def resolved_distillation(config: DistillConfig, parts: Parts, data: Data) -> dict[str, Any]:
    """Likewise, with the weights and the settings of the method."""
    kind = methods[config.method_name]
    resolved = asdict(config) | {"dataset": data.name, "student": parts.student.name, "teacher": parts.teacher.name}
    resolved |= {"method": config.method_name, "milestones": list(config.milestones)}
    resolved |= {f"{name}_weight": weight for name, weight in parts.weights._asdict().items()}
    del resolved["settings"], resolved["role"]
    if kind.settings:
        resolved[kind.settings] = asdict(kind.Config(**config.settings))
    return resolved
