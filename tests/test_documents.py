"""The code in README and CONTRIBUTING does what it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hkd
from hkd.cli import main
from hkd.methods import methods
from tests.data.test_datasets import picture
from tests.models.test_external import Own

ROOT = Path(__file__).parents[1]


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 256), nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature = self.body(x)
        return feature, self.head(feature)


def test_every_test_that_a_document_names_exists() -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"`(test_[a-z0-9_]+)`", document.read_text()):
            assert f"def {name}(" in tests, f"{document.name}: {name}"


def test_the_loop_of_the_readme_learns() -> None:
    torch.manual_seed(0)
    image, labels = torch.randn(30, 4), torch.arange(30) % 3
    batches = [(image[i : i + 10], labels[i : i + 10], torch.arange(i, i + 10)) for i in (0, 10, 20)]
    student = Pair()
    names: dict[str, Any] = {
        "hkd": hkd, "torch": torch, "F": F, "device": "cpu", "student": student, "teacher": Pair(), "labels": labels,
        "train_set": image, "loader": batches * 10,
    }  # fmt: skip
    before = F.cross_entropy(student(image)[1], labels)
    exec(next(block for block in python_blocks("README.md") if "HolisticLoss" in block), names)
    assert F.cross_entropy(student(image)[1], labels) < before


def test_the_first_screen_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in, predictions and a file out: its commands, with smaller networks, images and epochs."""
    commands = re.findall(r"```\n(hkd distill.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[
        0
    ].splitlines()
    monkeypatch.chdir(tmp_path)
    for n in range(40):
        file = tmp_path / ("photos" if n < 36 else "holiday") / ("cat", "dog")[n % 2] / f"{n}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture((80, 70), n).save(file)
    smaller = "--teacher resnet14 --student resnet8 --epochs 4 --batch-size 8 --image-size 16 --device cpu --workers 0"
    for line in commands:
        words = line.partition("#")[0].replace("--teacher-pretrained --student-pretrained", smaller).split()[1:]
        words += ["--device", "cpu"] if words[0] == "predict" else ["--max-drop", "100"] if words[0] == "export" else []
        assert main(words) == 0, line
    assert (tmp_path / "runs" / "photos" / "export" / "model.int8.onnx").is_file()


def test_own_modules_and_data_as_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = hkd.DistillConfig.spec
    monkeypatch.setattr(hkd.DistillConfig, "spec", lambda self: spec(self).with_options(epochs=1))
    data = [(picture((70, 64), n), n % 10) for n in range(20)]
    names: dict[str, Any] = {
        "__name__": "__main__", "MySmallNet": Own, "my_trained_teacher": Own(10),
        "my_train_set": data, "my_test_set": data,
    }  # fmt: skip
    exec(next(block for block in python_blocks("README.md") if "hkd.distill" in block), names)
    assert names["result"].summary["epochs"] == 1


def test_the_method_of_the_contributing_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_entries", {name: methods[name] for name in methods})
    exec(next(block for block in python_blocks("CONTRIBUTING.md")), {"__name__": "cosine"})
    student, teacher = hkd.create_model("resnet8", 4), hkd.create_model("wrn_16_1", 4)
    method = hkd.create_method("cosine", student=student, teacher=teacher, num_samples=8, bias=False)
    image = torch.randn(3, 3, 32, 32)
    batch = hkd.Batch(image, torch.tensor([0, 1, 2]), torch.arange(3))
    terms = method(batch, student(image), teacher(image))
    terms["cosine"].backward()
    assert student.conv1.weight.grad is not None
