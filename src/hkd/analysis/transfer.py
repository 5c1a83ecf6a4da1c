"""How far what a network learnt carries: a linear classifier on its frozen features, on other data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch.nn import functional as F

from hkd.analysis.features import extract
from hkd.config import TransferConfig
from hkd.data import limit, load_dataset
from hkd.errors import RequestError
from hkd.report.labels import label_of, with_teachers
from hkd.report.tables import spread, write_numbers
from hkd.runtime.engine import Engine

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Probe = Callable[[Array, Labels, float, int], Callable[[Array], Labels]]
"""Trains on (features, labels) with a penalty and a seed; returns what predicts."""

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""λ of the mean cross-entropy plus λ/2 the squared weights: what SGD calls weight decay."""


def transfer(config: TransferConfig) -> dict[str, Any]:
    """Trains a probe for each network and data set and writes ``transfer.md``, ``.csv`` and ``.json``.

    The probe's penalty is chosen on a part of the training split that it has not seen; then it is trained on the whole
    split, and tested once on the test split.

    Returns:
        What stands in ``transfer.json``.
    """
    config.check()
    networks = with_teachers(config.checkpoints)
    data = {name: _splits(config, name) for name in config.datasets}
    folder = Path(config.run)
    engine = Engine(config.device, config.precision, config.seed)
    rows = []
    for found in networks:
        for name, (train, test) in data.items():
            told = f"{label_of(found)} ({found.weights.parent}) on {name}"
            print(told, file=sys.stderr, flush=True)
            parts = [extract(found, part, engine, folder / "cache", config.batch_size) for part in (train, test)]
            (x, y), (x_test, y_test) = ((part.embedding, part.label) for part in parts)
            penalty, held_out = choose_penalty(x, y, config)
            predicted = PROBES[config.probe](x, y, penalty, config.seed)(x_test)
            row: dict[str, Any] = {"network": label_of(found), "weights": str(found.weights), "dataset": name}
            row |= {"seed": found.asked.get("seed"), "top1": 100 * float(np.mean(predicted == y_test))}
            rows.append(row | {"penalty": penalty, "held_out_top1": held_out})
    protocol = [f"{name}: {len(train):,} training, {len(test):,} test images" for name, (train, test) in data.items()]
    protocol += [
        f"images of {config.image_size}x{config.image_size} pixels; probe: {DESCRIPTIONS[config.probe]}; its penalty "
        f"chosen on {100 * config.holdout:.0f} % of the training split, then trained on all of it"
    ]
    numbers = {"protocol": protocol, "datasets": list(data), "rows": rows}
    write_numbers(folder, "transfer", numbers, rows, markdown(numbers))
    return numbers


def _splits(config: TransferConfig, name: str) -> tuple[Any, Any]:
    parts = [load_dataset(name, split, config.data_root, config.image_size) for split in ("train", "test")]
    if parts[0].info.classes != parts[1].info.classes:
        raise RequestError(f"dataset: {name} has other classes to train on than to test on")
    per_class = (config.limit_train, None)
    return tuple(limit(part, config.limit_classes, count) for part, count in zip(parts, per_class, strict=True))  # type: ignore[return-value]


def choose_penalty(x: Array, y: Labels, config: TransferConfig) -> tuple[float, float]:
    """The penalty that does best on a held-out part of the training split, and its accuracy there in percent."""
    from sklearn.model_selection import train_test_split

    try:
        fit, held = train_test_split(np.arange(len(y)), test_size=config.holdout, random_state=config.seed, stratify=y)
    except ValueError as error:  # a class with one image, or more classes than held-out images
        raise RequestError(f"holdout: {config.holdout} of {len(y)} images cannot hold every class ({error})") from error
    probe = PROBES[config.probe]
    found = {p: 100 * float(np.mean(probe(x[fit], y[fit], p, config.seed)(x[held]) == y[held])) for p in PENALTIES}
    best = max(found, key=lambda penalty: found[penalty])
    return best, found[best]


def logistic(x: Array, y: Labels, penalty: float, seed: int) -> Callable[[Array], Labels]:
    """Logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn sums the loss over images
    solver = LogisticRegression(C=1 / (penalty * len(y)), max_iter=2000, random_state=seed)
    model = make_pipeline(StandardScaler(), solver).fit(x, y)
    return lambda features: np.asarray(model.predict(features))


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


def markdown(found: dict[str, Any]) -> str:
    """A row for each network, with the mean over its seeds, and a column for each data set."""
    labels = list(dict.fromkeys(row["network"] for row in found["rows"]))
    lines = [
        [
            label,
            *(
                spread([row["top1"] for row in found["rows"] if (row["network"], row["dataset"]) == (label, dataset)])
                for dataset in found["datasets"]
            ),
        ]
        for label in labels
    ]
    table = tabulate(lines, ["network", *found["datasets"]], "github", disable_numparse=True)
    protocol = "\n".join(f"- {line}" for line in found["protocol"])
    legend = "Accuracy of the linear probe on the test split in percent, mean ± standard deviation (n networks)."
    return f"# Transfer\n\n{protocol}\n\n{table}\n\n{legend}\n"
