"""The ImageNet recipe from end to end, on a folder of a few pictures in ImageNet's form."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkd.cli import main

CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in CLASSES:
            place = folder / "imagenet" / split / name
            place.mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 256, (260, 300, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{name}_{n}.JPEG", quality=80)
    return folder


def test_the_recipe_runs(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    asked = ["distill", "--config", "imagenet-r34-r18", "--no-teacher-pretrained", "--data-root", str(root)]
    asked += ["--epochs", "1", "--batch-size", "9", "--workers", "2", "--device", "cpu", "--no-tensorboard"]
    asked += ["--teacher", "torchvision:resnet18", "--holistic.bank-dtype", "bfloat16"]
    assert main([*asked, "--run", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["train_images"] == 18 and summary["test_images"] == 6
    told = capsys.readouterr().err
    assert "memory on cpu:" in told and "streamed" in told
    assert "imagenet: 18 training and 6 test images, 3 classes, images of varying size, shown at 224x224" in told
