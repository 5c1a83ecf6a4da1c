"""Trained networks: where they are, what is known of them, and what to test them on."""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from hkd.config import EvaluateConfig
from hkd.data import ArrayDataset, Dataset, list_datasets, load_dataset
from hkd.data.download import no_downloads
from hkd.data.spec import DataSpec
from hkd.data.subsets import hold_out, limit
from hkd.data.transform import transform_of
from hkd.data.unlabelled import labelled
from hkd.errors import RequestError
from hkd.files import inside
from hkd.models.base import Model
from hkd.models.names import model_of_file, names_code, resized
from hkd.models.spec import TeacherSpec
from hkd.models.weights import read_about, read_model
from hkd.options import shown
from hkd.outside import as_path
from hkd.spec import RunSpec, locate


@dataclass(frozen=True)
class Trained:
    """Where a trained network is, and what is known of it.

    Attributes:
        name: of the network.
        weights: the file with its weights.
        about: what the file says beside them: classes, mean, std, image_size and more; empty for files of other origin.
        spec: of its run; None where there is no run folder.
    """

    name: str
    weights: Path
    about: dict[str, Any]
    spec: RunSpec | None = None

    @property
    def key(self) -> str:
        """What it shares with other trials of the same experiment; a file without a run shares nothing."""
        return str(self.weights.resolve()) if self.spec is None else self.spec.key()

    @property
    def seed(self) -> int | None:
        return None if self.spec is None else self.spec.seed

    @property
    def is_distilled(self) -> bool:
        return self.spec is not None and self.spec.method is not None

    @property
    def label(self) -> str:
        """The network as a table names it: "resnet8", or "resnet8, hkd(k=4)+kd"."""
        if self.spec is None or self.spec.method is None:
            return self.name
        return f"{self.name}, {method_label(self.spec)}"


def method_label(spec: RunSpec) -> str:
    """A run's method with what differs from its published form, as a line of a comparison writes it."""
    from hkd.methods import methods
    from hkd.methods.create import method_config

    method = spec.method
    if method is None:
        return "ce"
    kind = methods[method.name]
    settings = method.settings
    changed: dict[str, Any] = {}
    usual = kind.default_weights(settings if settings is not None else method_config(method.name, {}))
    plus = "+kd" if method.kd_weight == 1 and usual.kd != 1 and method.name != "kd" else ""
    for name, value, published in (
        ("ce_weight", method.ce_weight, usual.ce),
        ("kd_weight", method.kd_weight, 1.0 if plus else usual.kd),
        ("method_weight", method.weight, usual.method),
        ("kd_temperature", method.kd_temperature, 4.0),
        ("kd_standardise", method.kd_standardise, False),
    ):
        if value is not None and value != published:
            changed[name] = value
    if settings is not None:
        defaults = method_config(method.name, {})
        changed |= {k: v for k, v in vars(settings).items() if v != getattr(defaults, k)}
    words = ",".join(f"{name}={_plain(value)}" for name, value in changed.items())
    return f"{method.name}{f'({words})' if words else ''}{plus}"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def find_trained(checkpoint: str | Path, model: str | None = None) -> Trained:
    """Looks into a run folder or a file of weights.

    Args:
        checkpoint: the folder or file.
        model: the network in it, where it does not say.
    """
    file, folder = locate(checkpoint)
    about = read_about(file)
    spec = None if folder is None else RunSpec.read(folder / "config.yaml")
    return Trained(model or model_of_file(about, file), file, about, spec)


def load_model(path: str | Path, model: str | None = None) -> Model:
    """A trained network, ready for use: in evaluation mode, with its classes and its preprocessing.

    Args:
        path: a run folder, or a file that :func:`hkd.save_model` wrote.
        model: the network in it, as :func:`hkd.create_model` takes it. Needed where the file does not say, or says a
            name that imports or downloads something: a file's word is never enough for that.

    Returns:
        The network, with ``classes``, a list of their names (numbers, where the file names none), and ``transform``,
        which makes a PIL picture what the network takes, see :class:`hkd.data.transform.Transform`. ``transform``
        raises :class:`RequestError` where the file does not say its image size or its normalisation.

    Raises:
        RequestError: the file is missing or damaged, holds another network, or a network that ``model`` has to name.

    Example::

        model = hkd.load_model("runs/photos")
        with torch.no_grad():
            logits = model(model.transform(Image.open("a.jpg"))[None]).logits
        print(model.classes[logits.argmax()])
    """
    path = as_path(path, "checkpoint")
    file = locate(path)[0] if os.path.isdir(path) else path
    network, about = read_model(file, model)
    network.classes = list(about.get("classes") or map(str, range(about["num_classes"])))
    try:
        network.transform = transform_of(about, str(file))
    except RequestError as error:
        network.transform = partial(_untold, str(error))
    return network.eval()


def _untold(reason: str, image: Any) -> Tensor:
    """In the place of a transform that a file does not say."""
    raise RequestError(reason)


def open_test(config: EvaluateConfig, trained: Trained) -> Dataset:
    """The images to test a trained network on, in the classes and the normalisation that it learnt."""
    changed, of_run = _data_of(config, trained)
    with _downloads(config, trained):
        if changed.holdout and of_run:
            _, held_out = hold_out(_training_split(changed), changed.holdout, changed.holdout_seed)
            data = labelled(held_out)
        else:
            data = load_dataset(changed.dataset, "test", changed.data_root, changed.image_size)
    return _as_learnt(data, config, trained)


def evaluation_split(trained: Trained, dataset: str | None = None) -> str:
    """Which images :func:`open_test` opens, in words; ``dataset`` is one that is named instead of the run's."""
    held_out = dataset is None and trained.spec is not None and trained.spec.data.holdout
    return "the held-out part" if held_out else "the test split"


def open_training(config: EvaluateConfig, trained: Trained) -> Dataset:
    """The images that a trained network learnt from, or might have, without those that its run held out; as
    :func:`open_test` otherwise."""
    changed, of_run = _data_of(config, trained)
    with _downloads(config, trained):
        data = _training_split(changed)
    if of_run and changed.holdout:
        data, _ = hold_out(data, changed.holdout, changed.holdout_seed)
    return _as_learnt(data, config, trained)


def _training_split(spec: DataSpec) -> Dataset:
    """As a run holds a part of it out: of its classes, before other limits."""
    return limit(load_dataset(spec.dataset, "train", spec.data_root, spec.image_size), spec.limit_classes, None)


def _downloads(config: EvaluateConfig, trained: Trained) -> AbstractContextManager[None]:
    """Where a run's file alone says in which folder data sets are, they are read there and not downloaded to it."""
    if config.data_root is not None or trained.spec is None:
        return nullcontext()
    return no_downloads("name a folder to download it to with --data-root")


def _data_of(config: EvaluateConfig, trained: Trained) -> tuple[DataSpec, bool]:
    """Which data a request is about, and whether it is that of the network's run."""
    about, spec = trained.about, trained.spec or _spec_of_best(trained.weights)
    dataset = config.dataset or (spec.data.dataset if spec else None) or about.get("dataset")
    if dataset is None or (config.dataset is None and ":" not in dataset and dataset not in list_datasets()):
        unknown = (
            "" if dataset is None else f"; {trained.weights} was trained on {shown(dataset)}, which has no name here"
        )
        raise RequestError(f"dataset: name the data set to test on{unknown}")
    size = config.image_size or about.get("image_size")
    root = config.data_root or (spec.data.data_root if spec else None) or "data"
    of_run = spec is not None and config.dataset is None
    data = spec.data if spec is not None and of_run else DataSpec()
    return dataclasses.replace(data, dataset=dataset, data_root=root, image_size=size), of_run


def _as_learnt(data: Dataset, config: EvaluateConfig, trained: Trained) -> Dataset:
    """Images in the classes and the normalisation that a network learnt."""
    about = trained.about
    learnt: list[str] = about.get("classes") or list(data.info.classes)
    of_limited_run = list(data.info.classes[: len(learnt)]) == learnt
    data = limit(data, config.limit_classes or (len(learnt) if of_limited_run else None), None)
    if list(data.info.classes) != learnt:
        raise RequestError(f"dataset: {trained.weights} learnt other classes: {first_difference(data, learnt)}")
    if "mean" in about:
        data.info = dataclasses.replace(data.info, mean=tuple(about["mean"]), std=tuple(about["std"]))
    elif data.info.mean is None:
        print(f"{trained.weights} does not say its normalisation: ImageNet's mean and std are used", file=sys.stderr)
    return data


def _spec_of_best(weights: Path) -> RunSpec | None:
    """The specification of the run of whose best epoch a file is."""
    config = weights.parent.parent / "config.yaml"
    of_run = weights.parent.name == "checkpoints" and config.is_file()
    return RunSpec.read(config) if of_run else None


def crop_of(data: Dataset) -> str:
    """How an evaluation crops images of another shape: "fit" in memory, "centre" from files."""
    return "fit" if isinstance(data, ArrayDataset) else "centre"


def first_difference(data: Dataset, learnt: list[str]) -> str:
    for mine, theirs in zip(data.info.classes, learnt, strict=False):
        if mine != theirs:
            return f"{shown(theirs)} where {data.info.name} has {mine!r}"
    return f"{len(learnt)} where {data.info.name} has {data.info.num_classes}"


def teacher_of(trained: Trained, teacher: TeacherSpec) -> Trained | None:
    """One of the networks that a student learnt from, where its run says where it is and it is there."""
    own = inside(trained.weights.parent, "teacher")
    place = teacher.checkpoint or (teacher.weights if teacher.weights and not own.exists() else own)
    if not os.path.exists(place):  # False, too, where the name is longer than a file's may be
        return None
    if place != own and teacher.image_size is not None:
        return None  # a network of another size than the images on which the others are compared
    name = teacher.name and resized(teacher.name, teacher.image_size)  # from a file: its word imports nothing
    return find_trained(place, None if name is None or names_code(name) else name)


def with_teachers(checkpoints: tuple[str, ...]) -> list[Trained]:
    """The networks of run folders and files, and before them the teachers that they learnt from, each once."""
    students = [find_trained(checkpoint) for checkpoint in checkpoints]
    teachers = [
        teacher_of(student, teacher)
        for student in students
        for teacher in (() if student.spec is None else student.spec.teachers)
    ]
    known = [*(teacher for teacher in teachers if teacher is not None), *students]
    unique = {trained.weights.resolve(): trained for trained in known}
    return list(unique.values())
