"""Linear probes on a few digits and on folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hkd
from hkd.analysis import features
from hkd.analysis import transfer as probes
from hkd.report.transfer import transfer
from hkd.spec import RunSpec
from hkd.trained import find_trained, method_label
from tests.data.test_datasets import class_folders, write_files


def config(runs: Path, tmp_path: Path, **changes: Any) -> hkd.TransferConfig:
    checkpoints = tuple(str(runs / name) for name in ("alone", "kd-0", "kd-1"))
    fields = {"datasets": ("digits",), "image_size": 8, "limit_train": 30, "device": "cpu"}
    return hkd.TransferConfig(checkpoints=checkpoints, run=str(tmp_path / "t"), **fields | changes)


def test_a_transfer(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = transfer(config(runs, tmp_path))
    labels = [row["label"] for row in found["rows"]]
    assert labels == ["resnet14", "resnet14", "resnet8", "resnet8, kd", "resnet8, kd"]
    assert all(row["top1"] > 30 for row in found["rows"]), "features of digits tell digits apart"
    text = (tmp_path / "t" / "transfer.md").read_text()
    assert "| resnet8, kd " in text and "(2) |" in text and "300 training, 355 test images" in text
    assert json.loads((tmp_path / "t" / "transfer.json").read_text()) == found

    monkeypatch.setattr(features, "_run", lambda *_: pytest.fail("features are extracted once"))
    assert transfer(config(runs, tmp_path)) == found


def test_the_penalty_is_chosen_without_the_test_split(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(x: np.ndarray, y: np.ndarray, penalty: float, seed: int) -> Any:
        seen.append((len(y), penalty))
        return probes.logistic(x, y, penalty, seed)

    monkeypatch.setitem(probes.PROBES, "logistic", watch)
    found = transfer(config(runs, tmp_path, holdout=0.25))
    for row, trained in zip(found["rows"], np.split(np.array(seen), len(found["rows"])), strict=True):
        assert [int(count) for count, _ in trained] == [225] * 6 + [300]
        assert sorted(p for _, p in trained[:6]) == list(probes.PENALTIES)
        assert trained[-1][1] == row["penalty"]


@pytest.mark.parametrize("probe", [probes.logistic, probes.sgd])
def test_probes_separate_what_can_be_separated(probe: probes.Probe) -> None:
    draw = np.random.default_rng(0)
    y = draw.integers(3, size=300)
    x = (3 * np.eye(3, 5)[y] + 0.5 * draw.standard_normal((300, 5))).astype(np.float32)
    weak, strong = (probe(x[:200], y[:200], penalty, 0)(x[200:]) for penalty in (1e-4, 1e3))
    assert np.mean(weak == y[200:]) > 0.97
    assert np.mean(strong == y[200:]) < 0.97, "the penalty is used"
    assert (probe(x[:200], y[:200], 1e-4, 0)(x[200:]) == weak).all()


def test_logistic_regression_minimises_what_it_says() -> None:
    draw = np.random.default_rng(1)
    y = draw.integers(2, size=80)
    x = draw.standard_normal((80, 2)).astype(np.float32) + y[:, None]
    penalty = 0.1
    scaled = torch.from_numpy((x - x.mean(0)) / x.std(0)).double()
    weight, bias = (
        torch.zeros(2, dtype=torch.float64, requires_grad=True),
        torch.zeros((), dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.binary_cross_entropy_with_logits(scaled @ weight + bias, torch.from_numpy(y).double())
        total = fit + penalty / 2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    expected = ((scaled @ weight + bias) > 0).long().numpy()
    assert (probes.logistic(x, y, penalty, 0)(x) == expected).mean() > 0.98


def test_folders_and_wrong_requests(runs: Path, tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", class_folders())
    found = transfer(config(runs, tmp_path, datasets=(f"folder:{photos}",), limit_train=None, image_size=16))
    assert found["datasets"] == [f"folder:{photos}"]
    with pytest.raises(
        hkd.RequestError, match=r"holdout: expected a fraction with an image of every class; got 0.2 of 10"
    ):
        transfer(config(runs, tmp_path, limit_train=1))
    for changes, message in (
        ({"checkpoints": ()}, "checkpoints: name at least one"),
        ({"datasets": ()}, "datasets: name at least one"),
        ({"datasets": ("digit",)}, "did you mean digits"),
        ({"holdout": 1.0}, r"holdout: expected a number in \(0, 1\)"),
        ({"checkpoints": (str(tmp_path / "none"),)}, "checkpoint: no file"),
    ):
        asked = {"checkpoints": (str(runs / "alone"),), "datasets": ("digits",), "run": str(tmp_path / "t")} | changes
        with pytest.raises(hkd.RequestError, match=message):
            transfer(hkd.TransferConfig(device="cpu", **asked))


def test_labels(runs: Path) -> None:
    assert find_trained(runs / "kd-0").label == "resnet8, kd"
    assert find_trained(runs / "kd-0" / "teacher").label == "resnet14"
    for line, label in (
        ({"method": "hkd+kd", "holistic": {"k": 4}}, "hkd(k=4)+kd"),
        ({"method": "sdd", "sdd": {"scales": [1, 2]}}, "sdd(scales=[1,2])"),
        ({"method": "hkd", "kd_weight": 0.5}, "hkd(kd_weight=0.5)"),
        ({"method": "kd", "kd_weight": 0.9, "ce_weight": 0.1}, "kd"),
        ({"method": "kd", "kd_weight": 1.0}, "kd(kd_weight=1)"),
    ):
        assert method_label(RunSpec.from_flat(line)) == label
