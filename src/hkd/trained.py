"""Networks that are trained: where they are, what is known of them, and what to test them on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hkd.config import EvaluateConfig
from hkd.data import Dataset, limit, list_datasets, load_dataset
from hkd.errors import RequestError
from hkd.models import list_models
from hkd.models.weights import existing, read_about


@dataclass(frozen=True)
class Trained:
    """Where a trained network is, and what is known of it.

    Attributes:
        name: of the network.
        weights: the file with its weights.
        about: what stands beside them: classes, mean, std, image_size and more; empty for files of other origin.
        asked: the configuration of its run; empty where there is no run folder.
        key: equal for runs that differ in their seed alone; empty where there is no run folder.
        label: what tables call it.
    """

    name: str
    weights: Path
    about: dict[str, Any]
    asked: dict[str, Any]
    key: str = ""
    label: str = ""

    @property
    def seed(self) -> int | None:
        """Of its run."""
        return self.asked.get("seed")


def find_trained(checkpoint: str, model: str | None = None) -> Trained:
    """Looks into a run folder or a file of weights.

    Args:
        checkpoint: the folder or file.
        model: the network in it, where it does not say.
    """
    path, asked = Path(checkpoint), {}
    if path.is_dir():
        asked = yaml.safe_load(existing(path / "config.yaml").read_text())
        path = weights_file(path)
    about = read_about(path)
    name = model or about.get("model")
    if name is None:
        raise RequestError(f"model: {path} does not say which network it holds; name it with --model")
    if model is None and ":" not in name and name not in list_models():
        raise RequestError(f"model: {path} holds an own network, {name}; name its factory with --model module:callable")
    return Trained(name, path, about, asked, _key(asked), name)


NOT_LEARNT = frozenset({"run", "seed", "device", "workers", "tensorboard", "save_minutes", "data_root"})
"""Fields of a run's configuration that do not decide what is learnt."""


def _key(asked: dict[str, Any]) -> str:
    learnt = {name: value for name, value in asked.items() if name not in NOT_LEARNT}
    return hashlib.sha256(json.dumps(learnt, sort_keys=True).encode()).hexdigest()[:16] if asked else ""


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
        raise RequestError(f"dataset: {path} learnt other classes: {first_difference(data, learnt)}")
    if "mean" in about:
        data.info = dataclasses.replace(data.info, mean=tuple(about["mean"]), std=tuple(about["std"]))
    return data


def weights_file(run: Path) -> Path:
    """The file with the trained network in a run folder."""
    return next(iter(sorted(run.glob("*.safetensors"))), run / "student.safetensors")


def first_difference(data: Dataset, learnt: list[str]) -> str:
    for mine, theirs in zip(data.info.classes, learnt, strict=False):
        if mine != theirs:
            return f"{theirs!r} where {data.info.name} has {mine!r}"
    return f"{len(learnt)} where {data.info.name} has {data.info.num_classes}"
