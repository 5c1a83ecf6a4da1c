"""Networks whose head alone is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import hkd
from hkd import head, trainer
from hkd.api import as_spec, teacher_spec
from hkd.cli import main
from hkd.data import ArrayDataset
from hkd.probe import NEVER, fit_logistic
from hkd.runtime.teacher_cache import tables_in
from hkd.spec import RunSpec
from tests.models.test_external import Own

SMALL: dict[str, Any] = {"limit_train": 20, "device": "cpu", "tensorboard": False}
VIT = "timm:test_vit3"


def distilled(run: Path, **changes: Any) -> hkd.Result:
    values = {
        "student": "timm:mobilenetv3_small_050", "teacher": VIT, "teacher_image_size": 48, "teacher_train": "head",
        "method": "hkd+kd", "epochs": 1, "teacher_cache": "auto",
    }  # fmt: skip
    return hkd.distill(hkd.DistillConfig(run=str(run), **SMALL | values | changes))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a transformer without a head."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("backbone") / "vit.pth"
    torch.save(timm.create_model("test_vit3", num_classes=0, img_size=48).state_dict(), file)
    return file


def test_a_backbone_gets_a_head_and_teaches_through_the_table(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    run = trainer.Trainer.run

    def watch(self: trainer.Trainer) -> dict[str, Any]:
        trained.append(self.distiller.student.name)
        return run(self)

    monkeypatch.setattr(trainer.Trainer, "run", watch)
    result = distilled(tmp_path / "d", teacher_weights=str(backbone), epochs=2)
    assert trained == ["timm:mobilenetv3_small_050"], "the teacher has no epochs"
    told = capsys.readouterr().err
    assert f"{backbone} has no head; timm:test_vit3 gets a fresh one of 10 classes" in told
    assert "200 images as 96 features of resized-48:timm:test_vit3; a linear head, penalty" in told
    assert result.summary["teacher_top1"] > 40, "random features of digits tell digits apart"
    state = hkd.load_model(result.run / "teacher" / "model.safetensors").state_dict()
    for name, value in torch.load(backbone, weights_only=True).items():
        torch.testing.assert_close(state[f"network.module.{name}"], value, msg=name)
    summary = json.loads((result.run / "teacher" / "summary.json").read_text())
    assert summary["top1_last"] == pytest.approx(result.summary["teacher_top1"])
    (table,) = tables_in(tmp_path / "teacher-cache")
    assert json.loads((table.path / "header.json").read_text())["teacher_size"] == 48
    again = distilled(
        tmp_path / "e", teacher=None, teacher_image_size=None, teacher_train="all", epochs=2,
        teacher_checkpoint=str(result.run / "teacher"), method="kd",
    )  # fmt: skip
    assert again.summary["teacher_cache"]["hits"] > 0
    assert hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(result.run / "teacher"), device="cpu")).top1 == pytest.approx(
        summary["top1_last"]
    )


def test_a_head_that_fits_is_trained_again_where_asked(tmp_path: Path) -> None:
    source = hkd.create_model("resnet8", 10)
    hkd.save_model(source, tmp_path / "w.safetensors")
    given = {"teacher": None, "teacher_weights": str(tmp_path / "w.safetensors"), "teacher_image_size": None}
    distilled(tmp_path / "d", student="resnet8", method="kd", **given)
    trained: Any = hkd.load_model(tmp_path / "d" / "teacher" / "model.safetensors")
    assert trained.conv1.weight.equal(source.state_dict()["conv1.weight"])
    assert not trained.fc.weight.equal(source.state_dict()["fc.weight"])


def test_hkd_train_fits_a_head_and_leaves_a_run(tmp_path: Path) -> None:
    words = ["train", "--run", str(tmp_path / "t"), "--limit-train", "20", "--device", "cpu", "--seed", "1"]
    words += ["--role", "teacher", "--teacher", "resnet8", "--teacher-train", "head"]
    assert main(words) == 0
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    (row,) = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert row["test_top1"] == summary["top1_last"] > 40
    spec = RunSpec.load(tmp_path / "t" / "config.yaml")
    assert spec.student.train == "head"
    assert spec.key() != replace(spec, student=replace(spec.student, train="all")).key()
    assert main(words) == 0, "it is finished"


def test_one_head_serves_students_of_any_schedule(tmp_path: Path) -> None:
    keys = set()
    for epochs, how in ((1, "head"), (2, "head"), (2, "all")):
        asked = as_spec(hkd.DistillConfig(epochs=epochs, teacher="resnet8", teacher_train=how, limit_train=4))
        keys.add(teacher_spec(asked, tmp_path, 0).key())
    assert len(keys) == 2


def test_a_study_plans_the_training_of_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"compare --dry-run --methods kd --trials 2 --limit-train 4 --teacher-train head --run {tmp_path}/c"
    assert main([*words.split(), "--teachers", "resnet14"]) == 0
    out = capsys.readouterr().out
    assert out.count("--student-train head") == 1 and "--teacher-train" not in out


def test_too_few_images_to_choose_a_penalty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = hkd.TrainConfig(run=str(tmp_path / "t"), student="resnet8", student_train="head", **SMALL)
    hkd.train(config.__class__(**vars(config) | {"limit_train": 1}))
    assert f"penalty {head.USUAL_PENALTY:g}, of too few to choose it" in capsys.readouterr().err


def test_images_without_a_label_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the head's training, where they would be a class of their own, and of the evaluation."""
    whole = hkd.load_dataset("digits", "train")
    labels = whole.labels[:200].clone()
    labels[::4] = -1
    some = ArrayDataset(whole.images[:200], labels, whole.info)
    config = hkd.TrainConfig(run=str(tmp_path / "t"), student="resnet8", student_train="head", device="cpu")
    result = hkd.train(config, train_data=some, test_data=some)
    assert "150 images as 64 features" in capsys.readouterr().err
    assert len(np.load(tmp_path / "t" / "predictions.npz")["label"]) == 150
    assert result.summary["top1_last"] > 30
    nothing = ArrayDataset(whole.images[:8], torch.full((8,), -1), whole.info)
    with pytest.raises(hkd.RequestError, match="expected labels of the evaluation images"):
        hkd.train(config, train_data=some, test_data=nothing)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "distill --student-train head",
            "student_train: expected all for a student that learns from a teacher; got head",
        ),
        ("distill --teacher-train head --teacher-checkpoint x", "teacher_train: expected all for a teacher that is"),
        ("distill --teacher-train some", "teacher_train: expected one of all, head; got 'some'"),
        ("train --student resnet8 --student-train head --mixup 0.2", "mixup: expected with student_train all; a head"),
        ("compare --student-train head", "option: unknown option"),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert main([*words.split(), "--run", str(tmp_path / "r"), "--limit-train", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "r").exists()


def test_a_module_that_is_passed_is_not_trained(tmp_path: Path) -> None:
    config = hkd.DistillConfig(run=str(tmp_path / "d"), method="kd", teacher_train="head", image_size=32, **SMALL)
    with pytest.raises(hkd.RequestError, match="teacher_train: expected all for a module that is passed"):
        hkd.distill(config, teacher=Own(10))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_probe_is_logistic_regression_on_standardised_features(classes: int) -> None:
    """Its gradient vanishes: that of the mean cross-entropy and of λ/2 times the squared standardised weights."""
    draw = np.random.default_rng(0)
    y = np.arange(60) % classes
    x = (draw.normal(size=(60, 5)) * [1, 2, 3, 4, 5] + y[:, None] + 7).astype(np.float32)
    penalty = 0.05
    fitted = fit_logistic(x, y, penalty, 0, classes + 1)
    assert fitted.weight.shape == (classes + 1, 5) and fitted.bias[classes] == NEVER
    mean, std = x.astype(np.float64).mean(axis=0), x.astype(np.float64).std(axis=0)
    logits = x @ fitted.weight[:classes].T + fitted.bias[:classes]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True) - np.eye(classes)[y]
    # For two classes one vector is penalised, the difference of the two; each half of it carries half the gradient.
    weights = fitted.weight[:classes] * std * (2 if classes == 2 else 1)
    gradient = error.T @ ((x - mean) / std) / len(y) + penalty * weights
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(error.mean(axis=0)).max() < 1e-3
