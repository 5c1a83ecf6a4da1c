"""Networks that see the images of a run in their own size and normalisation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hkd
from hkd.cli import main
from hkd.data import open_data
from hkd.models import Model, names_code
from hkd.models.resized import ResizedModel
from hkd.models.weights import weights_digest
from hkd.parts import build
from hkd.runtime.teacher_cache import tables_in
from hkd.spec import RunSpec
from hkd.types import Channels, ModelOutput
from tests.models.test_external import Own

OWN: tuple[Channels, Channels] = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
RUN: tuple[Channels, Channels] = ((0.5, 0.6, 0.7), (0.2, 0.3, 0.4))
SMALL: dict[str, Any] = {"limit_train": 4, "epochs": 1, "device": "cpu", "tensorboard": False}


class Seen(Model):
    """Keeps what it is shown."""

    name = "seen"

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)

    def forward(self, image: Tensor) -> ModelOutput:
        self.image = image
        embedding = image.mean(dim=(2, 3))
        return ModelOutput(self.layer(embedding), embedding, ())


def normalised(image: Tensor, mean: Channels, std: Channels) -> Tensor:
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def slow_resize(image: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resizing of square images, in float64: a triangle as wide as the step between two pixels."""
    side = image.shape[-1]
    step = side / size
    weights = torch.zeros(size, side, dtype=torch.float64)
    for row in range(size):
        for pixel in range(side):
            weights[row, pixel] = max(0.0, 1 - abs(pixel + 0.5 - (row + 0.5) * step) / max(step, 1.0))
    weights /= weights.sum(dim=1, keepdim=True)
    return torch.einsum("rp,bcpq,sq->bcrs", weights, image.double(), weights)


@pytest.mark.parametrize("size", [4, 8, 13])
@pytest.mark.parametrize("own", [None, OWN])
def test_it_shows_the_same_pixels_in_the_networks_own_terms(size: int, own: Any) -> None:
    network = Seen()
    network.normalisation = own
    model = ResizedModel(network, size)
    model.sees(*RUN)
    pixels = torch.rand(2, 3, 8, 8)
    model(normalised(pixels, *RUN))
    expected = normalised(slow_resize(pixels, size).float(), *(own or RUN))
    torch.testing.assert_close(network.image, expected, atol=1e-5, rtol=1e-5)


def test_a_file_keeps_what_the_network_saw(tmp_path: Path) -> None:
    model: Any = hkd.create_model("resized-24:resnet8", 10)
    model.sees(*OWN)
    hkd.save_model(model, tmp_path / "m.safetensors", image_size=8)
    loaded: Any = hkd.load_model(tmp_path / "m.safetensors")
    pixels = torch.rand(2, 3, 8, 8)
    expected = model.eval()(normalised(pixels, *OWN))
    loaded.sees(*RUN)
    out = loaded.eval()(normalised(pixels, *RUN))
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loaded.classify(out.embedding), out.logits)
    assert weights_digest(loaded) != weights_digest(model)


def test_its_numbers_are_those_of_the_network_at_its_size() -> None:
    model, alone = hkd.create_model("resized-24:resnet8", 10), hkd.create_model("resnet8", 10)
    info, own = model.info_at(8), alone.info_at(24)
    assert (info.stages, info.parameters, info.embedding_dim) == (own.stages, own.parameters, own.embedding_dim)
    assert (info.name, model.input_size) == ("resized-24:resnet8", 24)


@pytest.mark.parametrize(
    ("name", "code"),
    [("resized-24:resnet8", False), ("resized-24:timm:resnet18", False), ("resized-24:os:system", True),
     ("resized-24:timm:local-dir:x", True), ("projected-8-8-2:resized-24:resnet8", False), ("resized-0:x", True)],
)  # fmt: skip
def test_which_names_are_code(name: str, code: bool) -> None:
    assert names_code(name) is code


def distilled(run: Path, **changes: Any) -> hkd.Result:
    values = {"method": "kd", "student": "resnet8", "teacher": "timm:test_vit3", "teacher_image_size": 48} | changes
    return hkd.distill(hkd.DistillConfig(run=str(run), **SMALL | values))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> hkd.Result:
    return distilled(tmp_path_factory.mktemp("resized") / "d", teacher_cache="auto")


def test_a_teacher_is_trained_and_teaches_at_its_size(first: hkd.Result, tmp_path: Path) -> None:
    trained = RunSpec.load(first.run / "teacher" / "config.yaml")
    assert trained.student.name == "resized-48:timm:test_vit3"
    (table,) = tables_in(first.run.parent / "teacher-cache")
    header = json.loads((table.path / "header.json").read_text())
    assert (header["side"], header["teacher_size"]) == (8, 48)
    found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(first.run / "teacher"), device="cpu"))
    assert found.top1 == pytest.approx(first.summary["teacher_top1"])
    again = distilled(
        tmp_path / "d", teacher=None, teacher_image_size=None, teacher_checkpoint=str(first.run / "teacher"),
        teacher_cache=str(table.path.parent),
    )  # fmt: skip
    assert again.summary["teacher_cache"]["misses"] == 0, "it is the same teacher"
    with pytest.raises(hkd.RequestError, match="teacher_image_size: timm:test_vit3 was trained on .* 48x48; got 64"):
        distilled(tmp_path / "e", teacher=None, teacher_image_size=64, teacher_checkpoint=str(first.run / "teacher"))


def test_each_network_has_its_own_normalisation(tmp_path: Path) -> None:
    teacher = hkd.create_model("resnet8", 10)
    hkd.save_model(teacher, tmp_path / "t.safetensors", mean=list(OWN[0]), std=list(OWN[1]))
    flat = {"dataset": "digits", "student": "resnet8", "method": "kd", "limit_train": 4}
    for option in ("teacher_checkpoint", "teacher_weights"):
        spec = RunSpec.from_flat(flat | {option: str(tmp_path / "t.safetensors"), "teacher_image_size": 16})
        parts = build(spec, open_data(spec.data))
        taught = parts.distiller.teacher
        assert isinstance(taught, ResizedModel) and parts.teacher_is_trained
        pixels = torch.rand(2, 3, 8, 8)
        out = taught(normalised(pixels, parts.data.mean, parts.data.std)).logits
        assert (parts.data.mean, parts.data.std) != OWN, "the student's"
        expected = teacher.eval()(normalised(slow_resize(pixels, 16).float(), *OWN)).logits
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_modules_are_resized_too(tmp_path: Path) -> None:
    result = hkd.distill(
        hkd.DistillConfig(run=str(tmp_path / "d"), method="at", student="resnet8", teacher_image_size=32, **SMALL),
        teacher=Own(10),
    )
    spec = RunSpec.load(result.run / "config.yaml", trust=True)
    assert spec.teacher is not None and spec.teacher.name == "resized-32:Own"


def test_a_study_trains_such_a_teacher_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"compare --dry-run --methods kd,rkd --trials 2 --limit-train 4 --teacher-image-size 48 --run {tmp_path}/c"
    assert main([*words.split(), "--teachers", "timm:test_vit3"]) == 0
    out = capsys.readouterr().out
    assert out.count("--student resized-48:timm:test_vit3") == 1 and out.count("hkd distill") == 4


def test_hkd_train_trains_such_a_teacher(tmp_path: Path) -> None:
    config = hkd.TrainConfig(run=str(tmp_path / "t"), role="teacher", teacher="resnet8", teacher_image_size=12, **SMALL)
    assert hkd.train(config).summary["student"] == "resized-12:resnet8"
