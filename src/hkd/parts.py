"""What a run is made of, built before anything is trained: a wrong request must not cost a teacher's training."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hkd.data import Data
from hkd.data.balance import class_weights
from hkd.distiller import Distiller, as_teachers
from hkd.errors import RequestError
from hkd.methods import create_method, methods
from hkd.models import Model, ModelInfo, create_model, load_checkpoint, wrap_model
from hkd.models.names import model_of_file, resized, split_resized
from hkd.models.resized import ResizedModel
from hkd.models.spec import STUDENT, TEACHER, TeacherSpec
from hkd.models.start import look_at, start_from, told
from hkd.models.weights import read_about, weights_digest
from hkd.options import shown
from hkd.runtime.optimizers import check_optimizer
from hkd.spec import RunSpec, locate, resolve_method, resolve_student, resolve_teacher


@dataclass(frozen=True)
class Parts:
    """A run's parts.

    Attributes:
        spec: resolved.
        data: in the normalisation of the run.
        distiller: holds the student, the method and the teachers.
        teacher_is_trained: whether the teachers' weights are known; True without a teacher.
        note: a line about the weights that the student starts from; a teacher's comes with its training.
    """

    spec: RunSpec
    data: Data
    distiller: Distiller
    teacher_is_trained: bool
    note: str = ""

    @property
    def student(self) -> Model:
        return self.distiller.student


Teachers = nn.Module | Sequence[nn.Module] | None
"""What teaches, where modules do: one or several."""


def build(spec: RunSpec, data: Data, student: nn.Module | None = None, teacher: Teachers = None) -> Parts:
    """Builds the networks and the method of a run.

    Args:
        spec: of the run.
        data: what it learns from.
        student, teacher: modules, instead of the networks that the specification names. A teacher, or each in a list,
            is taken as trained, or gets the weights of its checkpoint.

    Raises:
        RequestError: a name is not known, networks, method and data do not fit one another, or one of several teachers
            has no weights.
    """
    check_training(spec)
    start = spec.student.weights
    name = spec.student.name or STUDENT if start is None or student is not None else resolve_student(spec.student).name
    network = build_network("student", str(name), student, data, spec.student.pretrained)
    note = "" if start is None else _start(network, start, data, "student_weights")
    spec = replace(spec, student=replace(spec.student, name=network.name))
    modules = as_teachers(teacher)
    specs = _one_each(spec, modules)
    made = [
        _teacher(spec, one, module, data) for one, module in zip(specs, modules or [None] * len(specs), strict=True)
    ]
    teachers, trained = [network for network, _ in made], all(known for _, known in made)
    if len(teachers) > 1 and not trained:
        raise RequestError(f"teacher_checkpoint: expected the weights of each of {len(teachers)} teachers; got none")
    if student is not None:
        spec = replace(spec, student=replace(spec.student, digest=_architecture(network)))
    if modules:
        specs = [
            replace(one, name=network.name, digest=f"weights {weights_digest(network)}")
            for one, network in zip(specs, teachers, strict=True)
        ]
    if specs:
        spec = replace(spec, teacher=specs[0], more_teachers=tuple(specs[1:]))
    spec, data = spec.resolved(data), _normalised(spec, data, network, teachers)
    for model in (network, *teachers):
        if isinstance(model, ResizedModel):
            model.sees(data.mean, data.std)
    _check_unlabelled(spec)
    return Parts(spec, data, _distiller(spec, data, network, teachers, data.train.labels), trained, note)


def check_training(spec: RunSpec) -> None:
    """Refuses what no data is needed to refuse.

    Raises:
        RequestError: optimiser, schedule or what is trained do not fit one another.
    """
    if spec.method is not None and spec.student.train == "head":
        raise RequestError("student_train: expected all for a student that learns from a teacher; got head")
    check_optimizer(spec.optimisation)


def _check_unlabelled(spec: RunSpec) -> None:
    if spec.method is None:
        return
    if spec.method.unlabelled is None and spec.method.unlabelled_share is not None:
        raise RequestError("unlabelled_share: expected with --unlabelled; all training images have labels")
    if spec.method.pseudo_labels is None:
        return
    if spec.more_teachers:
        raise RequestError(f"pseudo_labels: are the classes of one teacher; got {len(spec.teachers)}")
    if spec.method.unlabelled is None:
        raise RequestError("pseudo_labels: expected with --unlabelled; all training images have labels")
    if not methods[spec.method.name].remembers_classes:
        raise RequestError(f"pseudo_labels: {spec.method.name} has no memory in which an image has a class")


def relabelled(parts: Parts, labels: Tensor) -> Parts:
    """The same parts, whose method's memories know the training images by other labels, (N,), -1 for none.

    The method is built anew, so nothing may have been trained yet.
    """
    made = _distiller(parts.spec, parts.data, parts.student, parts.distiller.teachers, labels)
    return replace(parts, distiller=made)


def _one_each(spec: RunSpec, modules: Sequence[nn.Module]) -> list[TeacherSpec]:
    """The specifications of the teachers, as many as modules where there are any."""
    specs = list(spec.teachers)
    if not specs or len(modules) in (0, len(specs)):
        return specs
    checkpoints = sum(one.checkpoint is not None for one in specs)
    if checkpoints:
        raise RequestError(f"teacher_checkpoint: expected {len(modules)}, one for each teacher; got {checkpoints}")
    return [specs[0]] * len(modules)


def _normalised(spec: RunSpec, data: Data, student: Model, teachers: Sequence[Model]) -> Data:
    """The data in the normalisation of the run: the given one, else the one that the weights it starts from learnt."""
    if spec.data.mean is not None or spec.data.std is not None:
        return data
    usual = (data.mean, data.std)
    seeing = [network for network in teachers if network.input_size is None]  # what the loader shows, as it is
    learnt, *others = (network.normalisation for network in seeing or [student])
    if any((other or usual) != (learnt or usual) for other in others):
        raise RequestError("mean: the teachers learnt in different normalisations; name one with mean and std")
    return data if learnt in (None, usual) else data.normalised(*learnt)


def _distiller(
    spec: RunSpec, data: Data, student: Model, teachers: Sequence[Model], labels: Tensor | None = None
) -> Distiller:
    method, smoothing = spec.method, spec.optimisation.label_smoothing
    known = data.labelled.train.labels
    weights = class_weights(known, data.train.info.num_classes) if spec.data.balance == "loss" else None
    if method is None:
        return Distiller(student, class_weights=weights, label_smoothing=smoothing)
    settings = (
        {}
        if method.settings is None
        else {k: getattr(method.settings, k) for k in method.settings.__dataclass_fields__}
    )
    return Distiller(
        student,
        teachers,
        method.name,
        num_samples=len(data.train),
        labels=labels,
        ce_weight=method.ce_weight,
        kd_weight=method.kd_weight,
        method_weight=method.weight,
        kd_temperature=method.kd_temperature,
        kd_standardise=method.kd_standardise,
        class_weights=weights,
        label_smoothing=smoothing,
        image_size=data.image_size,
        seed=spec.seed,
        **settings,
    )


def build_network(
    role: str, name: str, module: nn.Module | None, data: Data, pretrained: bool, size: int | None = None
) -> Model:
    """A network that takes the data set's images, resized to ``size`` if given, and has a head for its classes."""
    classes = data.train.info.num_classes
    if module is None:
        model = create_model(resized(name, size), classes, pretrained=pretrained, image_size=data.image_size)
    else:
        model = wrap_model(module, image_size=size or data.image_size)
        model = model if size is None or isinstance(model, ResizedModel) else ResizedModel(model, size)
    head = model.info_at(data.image_size).num_classes
    if head != classes:
        raise RequestError(f"{role}: {model.name or name} has a {head}-class head, {data.name} has {classes} classes")
    return model


def _teacher(spec: RunSpec, teacher: TeacherSpec, module: nn.Module | None, data: Data) -> tuple[Model, bool]:
    """A teacher, and whether it is trained: a module, from a checkpoint, or with a library's weights."""
    module = copy.deepcopy(module)  # its batch norms are folded, and the caller's stay
    if teacher.weights is not None:
        name = "" if module is not None else str(resolve_teacher(teacher).name)
        model = build_network("teacher", name, module, data, False, teacher.image_size)
        trained = not _start(model, teacher.weights, data, "teacher_weights") and teacher.train == "all"
        if module is not None and not trained:
            raise RequestError(
                "teacher_weights: expected those of a trained network for the module that is passed, with its head"
            )
        return model, trained
    if teacher.checkpoint is None:
        name = teacher.name or TEACHER
        model = build_network("teacher", name, module, data, teacher.pretrained, teacher.image_size)
        if module is not None and teacher.train == "head":
            raise RequestError(
                "teacher_train: expected all for a module that is passed, which is not trained; got head"
            )
        # Other data, even of as many classes, is not what a library's classifier was trained on.
        comes = _inner(model).pretrained_classifier and spec.data.dataset == "imagenet" and teacher.train == "all"
        return model, module is not None or comes

    file, _ = locate(teacher.checkpoint, "teacher_checkpoint")
    about = read_about(file)
    name = teacher.name or ("" if module is not None else model_of_file(about, file, "teacher"))
    check_classes(file, about, data)
    model = build_network("teacher", name, module, data, False, teacher.image_size)
    loaded = _stored_as(model, about)
    try:
        load_checkpoint(loaded, file)
    except RequestError as error:
        held = about.get("model")
        if not teacher.name or not held or held == teacher.name:
            raise
        cure = f"the file says that it holds {shown(held)}, which --teacher none (in a file: null) takes"
        raise RequestError(f"{error}; {cure}") from None
    if "mean" in about and not isinstance(loaded, ResizedModel):
        loaded.normalisation = (tuple(about["mean"]), tuple(about["std"]))
    return model, True


def _inner(model: Model) -> Model:
    """The network behind a change of size."""
    return model.network if isinstance(model, ResizedModel) else model


def _stored_as(model: Model, about: Mapping[str, Any]) -> Model:
    """The part of a network that a file holds: all of it, or the network behind a change of size."""
    return model if split_resized(about.get("model", ""))[0] is not None else _inner(model)


def _start(model: Model, weights: str, data: Data, option: str) -> str:
    """Loads the weights that a network starts from; a line about a head that it did not get, empty where it did."""
    file, _ = locate(weights, option)
    classes = data.train.info.classes
    model = _stored_as(model, read_about(file))
    return told(file, model, start_from(model, file, classes), len(classes))


def comes_trained(spec: RunSpec, data: Data) -> bool:
    """Whether a distillation's teacher need not be trained: its weights are given, and so is its classifier."""
    teacher = spec.teacher
    if teacher is None or teacher.checkpoint is not None:
        return True
    if teacher.train == "head":
        return False
    if teacher.weights is not None:
        name = resized(str(resolve_teacher(teacher).name), teacher.image_size)
        return _head_fits(name, teacher.weights, data, "teacher_weights")
    return teacher.pretrained and spec.data.dataset == "imagenet"


def _head_fits(name: str, weights: str, data: Data, option: str) -> bool:
    info = data.train.info
    file, _ = locate(weights, option)
    model = _stored_as(_blank(name, info.num_classes, data.image_size), read_about(file))
    return look_at(model, file, info.classes).head_fits


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
    check_training(spec)
    classes, size = data.train.info.num_classes, data.image_size
    names = [("student", str(resolve_student(spec.student).name))]
    starts = [("student_weights", names[0][1], spec.student.weights)]
    if spec.teacher is not None:
        start = spec.teacher.weights
        taught = spec.teacher.name or TEACHER if start is None else str(resolve_teacher(spec.teacher).name)
        taught = resized(taught, spec.teacher.image_size)
        names.append(("teacher", taught))
        starts.append(("teacher_weights", taught, start))
    for option, name, start in starts:
        if start is not None:
            _head_fits(name, start, data, option)
    for role, name in names:
        head = measured(name, classes, size).num_classes
        if head != classes:
            raise RequestError(f"{role}: {name} has a {head}-class head, {data.name} has {classes} classes")
    if spec.method is None:
        return
    method = resolve_method(spec.method)
    _check_unlabelled(replace(spec, method=method))
    if spec.teacher is not None and spec.teacher.checkpoint is not None and not spec.teacher.digest:
        file, _ = locate(spec.teacher.checkpoint, "teacher_checkpoint")
        check_classes(file, read_about(file), data)
    if method.name != "kd":
        student, teacher = (_blank(name, classes, size) for _, name in names)
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
def _blank(name: str, classes: int, size: int) -> Model:
    """An untrained network, only ever measured."""
    if ":" in name:  # wrapping a library's network compares what its layers return, which takes weights
        with torch.random.fork_rng(devices=[]):
            return create_model(name, classes, image_size=size)
    with _WithoutDraws():
        return create_model(name, classes, image_size=size)


def measured(name: str, classes: int, size: int) -> ModelInfo:
    """A network in numbers, from an untrained one that is built once."""
    return _blank(name, classes, size).info_at(size)
