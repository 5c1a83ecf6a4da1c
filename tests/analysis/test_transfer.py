"""Linear probes on a few digits and on folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hkd.jobs import find_trained

import hkd
from hkd.analysis import features, transfer
from hkd.report.labels import label_of, method_label
from hkd.runtime.engine import Engine
from tests.data.test_datasets import class_folders, write_files

SMALL = {"epochs": 1, "limit_train": 20, "tensorboard": False, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, two students of it that differ in seed, one alone."""
    folder = tmp_path_factory.mktemp("runs")
    hkd.train(hkd.TrainConfig(run=str(folder / "alone"), student="resnet8", **SMALL))
    for seed in (0, 1):
        hkd.distill(
            hkd.DistillConfig(
                run=str(folder / f"kd-{seed}"), method="kd", teacher="resnet14", student="resnet8", seed=seed, **SMALL
            )
        )
    return folder


def config(runs: Path, tmp_path: Path, **changes: Any) -> hkd.TransferConfig:
    checkpoints = tuple(str(runs / name) for name in ("alone", "kd-0", "kd-1"))
    fields = {"datasets": ("digits",), "image_size": 8, "limit_train": 30, "device": "cpu"}
    return hkd.TransferConfig(checkpoints=checkpoints, run=str(tmp_path / "t"), **fields | changes)


def test_a_transfer(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hkd.transfer(config(runs, tmp_path))
    labels = [row["network"] for row in found["rows"]]
    assert labels == ["resnet14", "resnet14", "resnet8 alone", "resnet8, kd", "resnet8, kd"]
    assert all(row["top1"] > 30 for row in found["rows"]), "features of digits tell digits apart"
    text = (tmp_path / "t" / "transfer.md").read_text()
    assert "| resnet8, kd   |" in text and "(2) |" in text and "300 training, 355 test images" in text
    assert json.loads((tmp_path / "t" / "transfer.json").read_text()) == found

    monkeypatch.setattr(features, "_run", lambda *_: pytest.fail("features are extracted once"))
    assert hkd.transfer(config(runs, tmp_path)) == found


def test_other_images_or_weights_are_other_features(runs: Path, tmp_path: Path) -> None:
    engine = Engine("cpu")
    data = hkd.load_dataset("digits", "test")
    for name in ("alone", "kd-0"):
        found = find_trained(str(runs / name))
        for part in (data, hkd.load_dataset("digits", "train"), hkd.load_dataset("digits", "test", image_size=12)):
            features.extract(found, part, engine, tmp_path)
            features.extract(found, part, engine, tmp_path)
    assert len(list(tmp_path.glob("features-*.npz"))) == 6
    kept = next(iter(tmp_path.glob("features-*.npz")))
    kept.write_bytes(kept.read_bytes()[:100])
    features.extract(find_trained(str(runs / "alone")), data, engine, tmp_path)


def test_features_are_what_the_network_gives(runs: Path, tmp_path: Path) -> None:
    data = hkd.load_dataset("digits", "test")
    found = features.extract(find_trained(str(runs / "alone")), data, Engine("cpu"), tmp_path)
    model, about = hkd.load_model(runs / "alone" / "model.safetensors")
    image = torch.stack([data[n][0] for n in range(5)]).float() / 255
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        out = model.eval()((image - mean) / std)
    np.testing.assert_allclose(found.embedding[:5], out.embedding.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.logits[:5], out.logits.numpy(), rtol=1e-3, atol=1e-3)
    assert found.label.tolist() == data.labels.tolist()


def test_the_penalty_is_chosen_without_the_test_split(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(x: np.ndarray, y: np.ndarray, penalty: float, seed: int) -> Any:
        seen.append((len(y), penalty))
        return transfer.logistic(x, y, penalty, seed)

    monkeypatch.setitem(transfer.PROBES, "logistic", watch)
    found = hkd.transfer(config(runs, tmp_path, holdout=0.25))
    for row, trained in zip(found["rows"], np.split(np.array(seen), len(found["rows"])), strict=True):
        assert [int(count) for count, _ in trained] == [225] * 6 + [300]
        assert sorted(p for _, p in trained[:6]) == list(transfer.PENALTIES)
        assert trained[-1][1] == row["penalty"]


@pytest.mark.parametrize("probe", [transfer.logistic, transfer.sgd])
def test_probes_separate_what_can_be_separated(probe: transfer.Probe) -> None:
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
    assert (transfer.logistic(x, y, penalty, 0)(x) == expected).mean() > 0.98


def test_folders_and_wrong_requests(runs: Path, tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", class_folders())
    found = hkd.transfer(config(runs, tmp_path, datasets=(f"folder:{photos}",), limit_train=None, image_size=16))
    assert found["datasets"] == [f"folder:{photos}"]
    with pytest.raises(hkd.RequestError, match=r"holdout: 0.2 of 10 images cannot hold every class"):
        hkd.transfer(config(runs, tmp_path, limit_train=1))
    for changes, message in (
        ({"checkpoints": ()}, "checkpoints: name at least one"),
        ({"datasets": ()}, "datasets: name at least one"),
        ({"datasets": ("digit",)}, "did you mean digits"),
        ({"holdout": 1.0}, r"holdout: expected a part in \(0, 1\)"),
        ({"checkpoints": (str(tmp_path / "none"),)}, "checkpoint: no file"),
    ):
        asked = {"checkpoints": (str(runs / "alone"),), "datasets": ("digits",), "run": str(tmp_path / "t")} | changes
        with pytest.raises(hkd.RequestError, match=message):
            hkd.transfer(hkd.TransferConfig(device="cpu", **asked))


def test_labels(runs: Path) -> None:
    assert label_of(find_trained(str(runs / "kd-0"))) == "resnet8, kd"
    assert label_of(find_trained(str(runs / "kd-0" / "teacher"))) == "resnet14"
    asked = {"method": "hkd", "kd_weight": 1.0, "ce_weight": 1.0, "method_weight": 3.0, "holistic": {"k": 4}}
    assert method_label(asked) == "hkd(k=4)+kd"
    assert method_label(asked | {"kd_weight": 0.5, "holistic": {"k": 8}}) == "hkd(kd_weight=0.5)"
    assert method_label({"method": "kd", "kd_weight": 0.9, "ce_weight": 0.1, "method_weight": 0.0}) == "kd"
