"""SimKD's student is student, projector and the teacher's classifier, wherever a network is used."""

from pathlib import Path

import pytest
import torch
from torch import nn

import hkd
from hkd.config import DistillConfig, EvaluateConfig, TrainConfig
from hkd.models.names import model_of_file, names_code
from hkd.models.projected import ProjectedModel
from hkd.models.weights import read_model
from hkd.report.cost import cost_of

C = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher's folder and that of a student that reuses its classifier."""
    folder = tmp_path_factory.mktemp("simkd")
    small = {"limit_train": 10, "batch_size": 32, "device": "cpu", "tensorboard": False, "evaluate": "last"}
    hkd.train(TrainConfig(student="resnet8x4", epochs=1, run=str(folder / "teacher"), **small))
    hkd.distill(
        DistillConfig(
            student="resnet8", teacher_checkpoint=str(folder / "teacher"), method="simkd", epochs=2,
            run=str(folder / "student"), **small,
        )
    )  # fmt: skip
    return folder / "teacher", folder / "student"


def test_what_is_kept_evaluated_and_exported_is_the_predictor(run: tuple[Path, Path], tmp_path: Path) -> None:
    teacher = hkd.load_model(run[0] / "model.safetensors")
    model, about = read_model(run[1] / "student.safetensors")
    assert about["model"] == model.name == "projected-256-2-2:resnet8"
    assert isinstance(model, ProjectedModel)
    torch.testing.assert_close(model.classifier.weight, teacher.fc.weight)
    torch.testing.assert_close(model.classifier.bias, teacher.fc.bias)
    found = hkd.evaluate(EvaluateConfig(checkpoint=str(run[1]), device="cpu"))
    result = hkd.distill(hkd.RunSpec.load(run[1] / "config.yaml"))  # finished: its network is read
    assert result.skipped and isinstance(result.model, ProjectedModel)
    assert found.top1 == pytest.approx(result.summary["top1_last"])

    student = hkd.create_model("resnet8", C)
    own = sum(p.numel() for p in student.parameters()) - sum(p.numel() for p in student.fc.parameters())
    projector = 64 * 128 + 9 * 128**2 + 128 * 256 + 2 * (128 + 128 + 256)
    expected = own + projector + sum(p.numel() for p in teacher.fc.parameters())
    assert result.summary["parameters"] == model.info.parameters == cost_of(model.name, C, 8).parameters == expected


def test_a_teacher_that_gets_its_weights_later_gives_those() -> None:
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet14", C)
    distiller = hkd.Distiller(student, teacher, "simkd", num_samples=8)
    with torch.no_grad():
        teacher.fc.weight.add_(1.0)
    with torch.autocast("cpu", torch.bfloat16):  # which must not round what is taken over
        out = distiller(torch.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8))
    out.loss.backward()
    torch.testing.assert_close(distiller.student.classifier.weight, teacher.fc.weight)
    assert not distiller.student.classifier.weight.requires_grad
    assert distiller.student.network is student
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_a_map_of_more_cells_than_the_teachers_is_pooled() -> None:
    model = hkd.create_model("projected-16-3-2:resnet8", C)
    out = model(torch.randn(2, 3, 32, 32))
    assert out.pooled.shape == (2, 16, 3, 3)
    assert model(torch.randn(2, 3, 8, 8)).pooled.shape == (2, 16, 2, 2)


def test_other_classes_are_refused() -> None:
    with pytest.raises(hkd.RequestError, match="simkd gives the student the teacher's classifier; resnet14 has a 3-"):
        hkd.Distiller(hkd.create_model("resnet8", 4), hkd.create_model("resnet14", 3), "simkd", num_samples=8)


def test_a_network_without_such_a_map_is_refused() -> None:
    flat = hkd.wrap_model(nn.Sequential(nn.Flatten(), nn.Linear(192, C)), image_size=8)
    with pytest.raises(hkd.RequestError, match="which has no classify|a norm, a dropout"):
        hkd.Distiller(flat, hkd.create_model("resnet8", C), "simkd", num_samples=8, image_size=8)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("projected-256-8-2:resnet8", False),
        ("projected-256-8-2:timm:resnet18", False),
        ("projected-256-8-2:os:_exit", True),
        ("projected-256-8-2:timm:hf-hub:who/net", True),
        ("projected-0-8-2:resnet8", True),
        ("projected-256-8:resnet8", True),
        ("projected-99999-8-1:resnet8", True),
    ],
)
def test_a_projected_networks_name_is_as_trusted_as_the_networks(name: str, code: bool) -> None:
    assert names_code(name) == code
    if code:
        with pytest.raises(hkd.RequestError, match="a name in a file never imports"):
            model_of_file({"model": name}, "x.safetensors")
    else:
        assert model_of_file({"model": name}, "x.safetensors") == name
