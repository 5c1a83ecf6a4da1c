"""The images of a run: both splits of a data set."""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.config import TrainConfig
from hkd.data import STREAM_SIZE, Dataset, as_dataset, limit, load_dataset, prepare
from hkd.errors import RequestError
from hkd.models import Model


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


def open_data(config: TrainConfig, train: Any = None, test: Any = None) -> Data:
    """Both splits of the data set that a configuration names, or of an own one, for one run or several.

    They are cut down to what was asked for and decoded if small. Training decides the size of the images."""
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
    cache, workers = Path(config.run).parent / "cache", worker_count(config.workers)
    train = limit(train, config.limit_classes, config.limit_train, config.train_fraction)
    test = limit(test, config.limit_classes, None)
    train, test = (prepare(part, cache, workers, config.bad_images) for part in (train, test))
    return Data(name, train, test)


def worker_count(asked: int | None) -> int:
    return min(8, os.cpu_count() or 1) if asked is None else asked
