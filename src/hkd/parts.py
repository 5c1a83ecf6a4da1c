"""What a run is made of, built before anything is trained: a wrong request must not cost a teacher's training."""

from __future__ import annotations

import copy
import hashlib
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hkd.data import Data
from hkd.data.balance import class_weights
from hkd.distiller import Distiller
from hkd.errors import RequestError
from hkd.methods import create_method
from hkd.models import Model, ModelInfo, create_model, load_checkpoint, wrap_model
from hkd.models.names import model_of_file
from hkd.models.spec import STUDENT, TEACHER
from hkd.models.weights import read_about, weights_digest
from hkd.options import shown
from hkd.spec import RunSpec, locate, resolve_method


@dataclass(frozen=True)
class Parts:
    """A run's parts.

    Attributes:
        spec: resolved.
        data: in the normalisation of the run.
        distiller: holds the student, the method and the teacher.
        teacher_is_trained: whether the teacher's weights are known; True without a teacher.
    """

    spec: RunSpec
    data: Data
    distiller: Distiller
    teacher_is_trained: bool

    @property
    def student(self) -> Model:
        return self.distiller.student


def build(spec: RunSpec, data: Data, student: nn.Module | None = None, teacher: nn.Module | None = None) -> Parts:
    """Builds the networks and the method of a run.

    Args:
        spec: of the run.
        data: what it learns from.
        student, teacher: modules, instead of the networks that the specification names. A teacher is taken as
            trained, or gets the weights of its checkpoint.

    Raises:
        RequestError: a name is not known, or networks, method and data do not fit one another.
    """
    network = build_network("student", spec.student.name or STUDENT, student, data, spec.student.pretrained)
    spec = replace(spec, student=replace(spec.student, name=network.name))
    taught, trained = _teacher(spec, teacher, data)
    if student is not None:
        spec = replace(spec, student=replace(spec.student, digest=_architecture(network)))
    if teacher is not None and taught is not None and spec.teacher is not None:
        digest = f"weights {weights_digest(taught)}"
        spec = replace(spec, teacher=replace(spec.teacher, name=taught.name, digest=digest))
    spec, data = spec.resolved(data), _normalised(spec, data, network, taught)
    return Parts(spec, data, _distiller(spec, data, network, taught), trained)


def _normalised(spec: RunSpec, data: Data, student: Model, teacher: Model | None) -> Data:
    """The data in the normalisation of the run: the given one, else the one that the weights it starts from learnt."""
    if spec.data.mean is not None or spec.data.std is not None:
        return data
    learnt = (student if teacher is None else teacher).normalisation
    return data if learnt in (None, (data.mean, data.std)) else data.normalised(*learnt)


def _distiller(spec: RunSpec, data: Data, student: Model, teacher: Model | None) -> Distiller:
    method, labels = spec.method, data.train.labels
    weights = class_weights(labels, data.train.info.num_classes) if spec.data.balance == "loss" else None
    if method is None:
        return Distiller(student, class_weights=weights)
    settings = (
        {}
        if method.settings is None
        else {k: getattr(method.settings, k) for k in method.settings.__dataclass_fields__}
    )
    return Distiller(
        student,
        teacher,
        method.name,
        num_samples=len(data.train),
        labels=labels,
        ce_weight=method.ce_weight,
        kd_weight=method.kd_weight,
        method_weight=method.weight,
        kd_temperature=method.kd_temperature,
        kd_standardise=method.kd_standardise,
        class_weights=weights,
        image_size=data.image_size,
        seed=spec.seed,
        **settings,
    )


def build_network(role: str, name: str, module: nn.Module | None, data: Data, pretrained: bool) -> Model:
    """A network that takes the data set's images and has a head for its classes."""
    classes = data.train.info.num_classes
    if module is None:
        model = create_model(name, classes, pretrained=pretrained)
    else:
        model = wrap_model(module, image_size=data.image_size)
    head = model.info_at(data.image_size).num_classes
    if head != classes:
        raise RequestError(f"{role}: {model.name or name} has a {head}-class head, {data.name} has {classes} classes")
    return model


def _teacher(spec: RunSpec, module: nn.Module | None, data: Data) -> tuple[Model | None, bool]:
    """The teacher, and whether it is trained: a module, from a checkpoint, or with a library's weights."""
    teacher = spec.teacher
    if teacher is None:
        return None, True
    module = copy.deepcopy(module)  # its batch norms are folded, and the caller's stay
    if teacher.checkpoint is None:
        model = build_network("teacher", teacher.name or TEACHER, module, data, teacher.pretrained)
        # Other data, even of as many classes, is not what a library's classifier was trained on.
        return model, module is not None or (model.pretrained_classifier and spec.data.dataset == "imagenet")

    file, _ = locate(teacher.checkpoint)
    about = read_about(file)
    name = teacher.name or ("" if module is not None else model_of_file(about, file, "teacher"))
    check_classes(file, about, data)
    model = build_network("teacher", str(name or ""), module, data, False)
    load_checkpoint(model, file)
    if "mean" in about:
        model.normalisation = (tuple(about["mean"]), tuple(about["std"]))
    return model, True


def check_classes(file: Any, about: dict[str, Any], data: Data) -> None:
    """Raises :class:`RequestError` where a trained network learnt other classes than the data set has."""
    classes = list(data.train.info.classes)
    if about.get("num_classes", len(classes)) != len(classes):
        raise RequestError(
            f"teacher_checkpoint: {file} has a {shown(about['num_classes'])}-class head, "
            f"{data.name} has {len(classes)} classes"
        )
    if about.get("classes", classes) != classes:
        learnt = [str(name) for name in about["classes"]]
        pair = next(((a, b) for a, b in zip(learnt, classes, strict=False) if a != b), ("", ""))
        raise RequestError(
            f"teacher_checkpoint: {file} learnt other classes: {shown(pair[0])} where {data.name} has {pair[1]!r}"
        )


def _architecture(model: Model) -> str:
    """A digest of the names and shapes of a module's parameters, by which modules without a name are compared."""
    text = repr([(name, tuple(value.shape)) for name, value in model.state_dict().items()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def report_stage_pairs(distiller: Distiller) -> None:
    """Says which stage maps are compared, where they are not simply those of the same number."""
    method = distiller.method
    if method is not None and distiller.teacher is not None and any(s != t for s, t in method.pairs):
        pairs = ", ".join(f"{s} with {t}" for s, t in method.pairs)
        print(f"stage maps of {distiller.student.name} and {distiller.teacher.name}: {pairs}", file=sys.stderr)


# -- the dry check ----------------------------------------------------------------------------------------------------


def dry_check(spec: RunSpec, data: Data) -> None:
    """Checks that a run's names are known and its networks, method and data fit, without its weights or banks.

    Networks are measured once each; the method is built for a training set of two images a class.

    Raises:
        RequestError: they do not, as :func:`build` would say; :class:`hkd.errors.IncompatibleError` where the method
            cannot work between these two networks.
    """
    spec.check()
    classes, size = data.train.info.num_classes, data.image_size
    names = [("student", spec.student.name or STUDENT)]
    if spec.teacher is not None:
        names.append(("teacher", spec.teacher.name or TEACHER))
    for role, name in names:
        head = measured(name, classes, size).num_classes
        if head != classes:
            raise RequestError(f"{role}: {name} has a {head}-class head, {data.name} has {classes} classes")
    if spec.method is None:
        return
    method = resolve_method(spec.method)
    if spec.teacher is not None and spec.teacher.checkpoint is not None and not spec.teacher.digest:
        file, _ = locate(spec.teacher.checkpoint)
        check_classes(file, read_about(file), data)
    if method.name != "kd":
        student, teacher = (_blank(name, classes) for _, name in names)
        with _WithoutDraws():
            create_method(
                method.name, student=student, teacher=teacher, num_samples=2 * classes,
                labels=torch.arange(2 * classes) % classes, image_size=size,
                **({} if method.settings is None else vars(method.settings)),
            )  # fmt: skip


class _WithoutDraws(TorchFunctionMode):
    """While it is entered, initial weights are zeros, and large ones whatever is in memory, which is not even touched.

    A study checks hundreds of runs, and drawing their weights would take longest.
    """

    LARGE = 2**16

    DRAWS = (
        torch.Tensor.uniform_, torch.Tensor.normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_,
        nn.init.xavier_uniform_, nn.init.xavier_normal_,
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            with torch.no_grad():
                return tensor if tensor.numel() > self.LARGE else tensor.zero_()
        return func(*args, **kwargs)


@lru_cache(maxsize=64)
def _blank(name: str, classes: int) -> Model:
    """An untrained network, only ever measured."""
    if ":" in name:  # wrapping a library's network compares what its layers return, which takes weights
        with torch.random.fork_rng(devices=[]):
            return create_model(name, classes)
    with _WithoutDraws():
        return create_model(name, classes)


def measured(name: str, classes: int, size: int) -> ModelInfo:
    """A network in numbers, from an untrained one that is built once."""
    return _blank(name, classes).info_at(size)
