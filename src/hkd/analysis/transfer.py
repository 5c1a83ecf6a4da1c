"""How well what a network learnt transfers: a linear classifier on its frozen features, on other data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hkd.analysis.features import Features, extract
from hkd.analysis.trials import identity
from hkd.config import TransferConfig
from hkd.data import Dataset, limit, load_dataset
from hkd.errors import RequestError
from hkd.probe import PENALTIES as PENALTIES  # noqa: PLC0414  (others import them from here)
from hkd.probe import Array, Labels, best_penalty, fit_logistic
from hkd.probe import Probe as Probe  # noqa: PLC0414
from hkd.runtime.engine import Engine
from hkd.trained import Trained


def compute_transfer(config: TransferConfig, networks: Sequence[Trained]) -> dict[str, Any]:
    """Trains a probe for each network and data set.

    The probe's penalty is chosen on a held-out part of the training split; then the probe is trained on the whole
    split, and tested once on the test split.

    Returns:
        The content of ``transfer.json``: the protocol in sentences, the data sets, and a row for each network and data
        set.
    """
    data = {name: _splits(config, name) for name in config.datasets}
    engine = Engine(config.device, config.precision, config.seed)
    rows = []
    for network in networks:
        for name, splits in data.items():
            print(f"{network.label} ({network.weights.parent}) on {name}", file=sys.stderr, flush=True)
            train, test = (
                extract(network, split, engine, Path(config.run) / "cache", config.batch_size) for split in splits
            )
            rows.append(identity(network) | {"dataset": name} | probe_accuracy(train, test, config))
    return {"protocol": _protocol(config, data), "datasets": list(data), "rows": rows}


def probe_accuracy(train: Features, test: Features, config: TransferConfig) -> dict[str, float]:
    """Top-1 of the probe in percent on the test split, its penalty, and its top-1 on the held-out part."""
    penalty, held_out = choose_penalty(train.embedding, train.label, config)
    predict = PROBES[config.probe](train.embedding, train.label, penalty, config.seed)
    top1 = 100 * float(np.mean(predict(test.embedding) == test.label))
    return {"top1": top1, "penalty": penalty, "held_out_top1": held_out}


def _protocol(config: TransferConfig, data: dict[str, tuple[Dataset, Dataset]]) -> list[str]:
    sizes = [f"{name}: {len(train):,} training, {len(test):,} test images" for name, (train, test) in data.items()]
    return [
        *sizes,
        f"images of {config.image_size}x{config.image_size} pixels; probe: {DESCRIPTIONS[config.probe]}; its penalty "
        f"chosen on {100 * config.holdout:.0f} % of the training split, then trained on all of it",
    ]


def _splits(config: TransferConfig, name: str) -> tuple[Dataset, Dataset]:
    train, test = (load_dataset(name, split, config.data_root, config.image_size) for split in ("train", "test"))
    if train.info.classes != test.info.classes:
        raise RequestError(f"dataset: expected the same classes in the training and test split of {name}")
    return limit(train, config.limit_classes, config.limit_train), limit(test, config.limit_classes, None)


def choose_penalty(x: Array, y: Labels, config: TransferConfig) -> tuple[float, float]:
    """The penalty with the best accuracy on a held-out part of the training split, and that accuracy in percent."""
    return best_penalty(PROBES[config.probe], x, y, config.holdout, config.seed)


def logistic(x: Array, y: Labels, penalty: float, seed: int) -> Callable[[Array], Labels]:
    """Logistic regression on standardised features."""
    return fit_logistic(x, y, penalty, seed)


def sgd(x: Array, y: Labels, penalty: float, seed: int) -> Callable[[Array], Labels]:
    """A linear layer, 120 epochs of SGD: momentum .9, batch 64, rate .05 divided by 10 after 30, 60 and 90."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    layer = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    with torch.no_grad():
        layer.weight.normal_(std=0.01, generator=generator)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, weight_decay=penalty)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60, 90])
    for _ in range(120):
        for index in torch.randperm(len(y), generator=generator).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(layer(features[index]), labels[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()

    @torch.no_grad()
    def predict(other: Array) -> Labels:
        return np.asarray(layer(torch.from_numpy(other)).argmax(dim=1).numpy())

    return predict


PROBES: dict[str, Probe] = {"logistic": logistic, "sgd": sgd}
DESCRIPTIONS = {
    "logistic": "logistic regression on standardised features",
    "sgd": "a linear layer, 120 epochs of SGD, batch 64, rate 0.05 divided by 10 after 30, 60 and 90",
}
