"""Exported files against the network they were made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import hkd
from hkd.cli import main
from hkd.data import ArrayDataset, load_dataset, make_loader, prepare
from hkd.deploy import Deployed
from hkd.models.weights import read_model
from hkd.trained import find_trained, open_test
from tests.data.awkward import awkward
from tests.data.test_datasets import class_folders, encoded, picture, write_files
from tests.models.test_external import Own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hkd.Result:
    folder = tmp_path_factory.mktemp("runs") / "t"
    return hkd.train(hkd.TrainConfig(run=str(folder), student="resnet8", epochs=8, device="cpu", tensorboard=False))


@pytest.fixture(scope="module")
def exported(run: hkd.Result) -> Path:
    hkd.export(hkd.ExportConfig(checkpoint=str(run.run)))
    return run.run / "export"


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = hkd.load_dataset("digits", "test")
    return np.stack([data[n][0].numpy() for n in range(len(data))]), data.labels.numpy()


def test_what_an_export_leaves(exported: Path) -> None:
    assert sorted(file.name for file in exported.iterdir()) == [
        "MODEL_CARD.md", "model.onnx", "model.pt2", "model.safetensors",
    ]  # fmt: skip


def test_the_onnx_file_has_the_accuracy_of_the_run(run: hkd.Result, exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    images, labels = digits()
    (logits,) = session.run(None, {"image": images})
    assert 100 * np.mean(logits.argmax(1) == labels) == pytest.approx(run.summary["top1_last"])
    assert run.summary["top1_last"] > 50, "a network that has learnt something"
    assert session.run(None, {"image": images[:1]})[0].shape == (1, 10), "any batch size"
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list("0123456789") and about["image_size"] == "8"


def test_the_torch_file_needs_no_hkd(exported: Path, tmp_path: Path) -> None:
    images, _ = digits()
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, torch, numpy as np\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "np.save(sys.argv[3], model(torch.from_numpy(np.load(sys.argv[2]))).detach().numpy())\n"
        "assert not any(name.split('.')[0] == 'hkd' for name in sys.modules)\n"
    )
    files = (exported / "model.pt2", tmp_path / "images.npy", tmp_path / "logits.npy")
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True, cwd=tmp_path)
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    (logits,) = session.run(None, {"image": images})
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=1e-3, atol=1e-4)


def test_the_weights_are_the_run_s(run: hkd.Result, exported: Path) -> None:
    model, about = read_model(exported / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run.model.parameters(), strict=True))
    assert about["classes"] == list("0123456789")


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_exports_do_not_say_where_the_images_lie(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "at home"
    photos = write_files(secret / "photos", class_folders(train=6))
    rows = [(f"photos/{name}", name.split("/")[1], name.split("/")[0]) for name in class_folders(train=6)]
    table = secret / "photos.csv"
    table.write_text("\n".join(["path,label,split", *map(",".join, rows)]))
    asked = hkd.TrainConfig(
        run=str(tmp_path / "run"), dataset=f"{kind}:{photos if kind == 'folder' else table}", student="resnet8",
        epochs=1, batch_size=6, device="cpu",
    )  # fmt: skip
    hkd.train(asked)
    hkd.export(hkd.ExportConfig(checkpoint=asked.run))
    for file in (tmp_path / "run" / "export").iterdir():
        assert b"at home" not in file.read_bytes(), file.name
    assert f"{kind}:photos" in (tmp_path / "run" / "export" / "MODEL_CARD.md").read_text()


def test_the_card_tells_the_truth_and_its_example_runs(run: hkd.Result, exported: Path, tmp_path: Path) -> None:
    card = (exported / "MODEL_CARD.md").read_text()
    assert f"top-1 on the test split {run.summary['top1_last']:.2f} %" in card
    assert "same class for all 355 images of the test split of digits" in card
    code = card.split("```python\n")[1].split("```")[0]
    images, _ = digits()
    Image.fromarray(images[3].transpose(1, 2, 0)).save(tmp_path / "digit.png")
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "digit.png")], cwd=exported, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    with torch.no_grad():
        model, about = read_model(exported / "model.safetensors")
        logits = Deployed(model.eval(), about["mean"], about["std"])(torch.from_numpy(images[3:4]))
    assert told == str(int(logits.argmax()))


SHAPES = {"wide": (190, 130), "tall": (130, 190), "square": (150, 150), "small": (60, 80), "thread": (2, 200)}


def photos(folder: Path) -> Path:
    """Class folders whose evaluation images have several shapes and forms."""
    files = class_folders((140, 120), train=3)
    for number, (name, size) in enumerate(SHAPES.items()):
        files[f"val/cat/{name}.png"] = encoded(picture(size, number))
    return write_files(folder, files | {f"val/dog/{name}": content for name, content in awkward().items()})


@pytest.mark.parametrize("size", [64, 100])
def test_the_card_s_example_sees_what_the_evaluation_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Small images are decoded into memory and large ones streamed; each crops in its way."""
    data = photos(tmp_path / "photos")
    trained = hkd.train(
        hkd.TrainConfig(
            run=str(tmp_path / "t"), dataset=f"folder:{data}", image_size=size, epochs=1, workers=0, device="cpu",
            student="resnet8x4", tensorboard=False,
        )
    )  # fmt: skip
    hkd.export(hkd.ExportConfig(checkpoint=str(trained.run), formats=("onnx",)))
    card = (trained.run / "export" / "MODEL_CARD.md").read_text()
    assert ("8/7" in card) == (size == 100)
    code = card.split("```python\n")[1].split("```")[0]

    config = hkd.EvaluateConfig(checkpoint=str(trained.run), device="cpu")
    evaluated = prepare(open_test(config, find_trained(trained.run)))
    assert isinstance(evaluated, ArrayDataset) == (size == 64)
    names = load_dataset(f"folder:{data}", "test").names
    batches = list(make_loader(evaluated, 8, torch.device("cpu"), train=False).epoch(0))
    images = torch.cat([batch.image for batch in batches])
    with torch.no_grad():
        logits = trained.model(images).logits
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in evaluated.info.normalisation)

    monkeypatch.chdir(trained.run / "export")
    for name, image, expected in zip(names, images, logits, strict=True):
        monkeypatch.setattr(sys, "argv", ["classify", str(data / name)])
        variables: dict[str, Any] = {}
        exec(code, variables)
        pixels = ((image * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(np.asarray(variables["image"]), pixels, err_msg=name)
        np.testing.assert_allclose(variables["logits"][0], expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("about", "size", "crop"),
    [({"crop": "centre"}, 32, "8/7"), ({"crop": "fit"}, 32, "shorter side and"), ({}, 32, "shorter side and"),
     ({"crop": "fit"}, 128, "8/7"), ({}, 128, "8/7")],
)  # fmt: skip
def test_a_card_without_test_images_says_how_the_file_was_evaluated(
    tmp_path: Path, about: dict[str, str], size: int, crop: str
) -> None:
    beside = {
        "classes": list("abcd"),
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "image_size": 32,
        "dataset": "lost",
        **about,
    }
    hkd.save_model(hkd.create_model("resnet8", 4), tmp_path / "m.safetensors", **beside)
    asked = hkd.ExportConfig(checkpoint=str(tmp_path / "m.safetensors"), formats=("safetensors",), image_size=size)
    hkd.export(asked)
    assert crop in (tmp_path / "export" / "MODEL_CARD.md").read_text()


def test_a_card_of_a_run_with_a_holdout_names_it(tmp_path: Path) -> None:
    run = hkd.train(
        hkd.TrainConfig(run=str(tmp_path / "t"), epochs=1, limit_train=5, holdout=0.2, device="cpu", tensorboard=False)
    )
    hkd.export(hkd.ExportConfig(checkpoint=str(run.run), formats=("torch",)))
    card = (run.run / "export" / "MODEL_CARD.md").read_text()
    assert f"top-1 on the held-out part {run.summary['top1_last']:.2f} %" in card
    assert f"all {run.summary['test_images']} images of the held-out part of digits, top-1" in card


def test_wrapped_networks_and_missing_data(tmp_path: Path) -> None:
    about = {"classes": list("abcd"), "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32, "dataset": "own"}
    hkd.save_model(hkd.create_model("torchvision:resnet18", 4), tmp_path / "r.safetensors", **about)
    found = hkd.export(hkd.ExportConfig(checkpoint=str(tmp_path / "r.safetensors")))
    assert [check.on for check in found.checks] == ["noise", "noise"]
    assert all(check.difference < 1e-3 and check.top1 is None for check in found.checks)
    hkd.save_model(hkd.wrap_model(Own(4), image_size=16), tmp_path / "own.safetensors", **about | {"image_size": 16})
    asked = {"checkpoint": str(tmp_path / "own.safetensors"), "output": str(tmp_path / "own"), "formats": ("onnx",)}
    with pytest.raises(hkd.RequestError, match="holds a network of its own"):
        hkd.export(hkd.ExportConfig(**asked))
    hkd.export(hkd.ExportConfig(**asked, model="tests.models.test_external:factory"))
    assert (tmp_path / "own" / "model.onnx").is_file()


def test_a_file_that_answers_differently_is_an_error(
    run: hkd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hkd.deploy.exporting._write_torch", lambda *_: lambda images: np.zeros((len(images), 10), np.float32)
    )
    with pytest.raises(hkd.TrainingError, match=r"model.pt2 gives \d+ of 355 images another class"):
        hkd.export(hkd.ExportConfig(checkpoint=str(run.run), output=str(tmp_path), formats=("torch",)))


def test_the_command(run: hkd.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.run), "--formats", "onnx", "--output", str(tmp_path / "e")]) == 0
    out = capsys.readouterr().out
    assert "model.onnx: same class for all 355 images" in out and str(tmp_path / "e" / "MODEL_CARD.md") in out
    for arguments, message in (
        (["--formats", "onx"], "formats: unknown name 'onx'; did you mean onnx"),
        (["--dataset", "digit"], "dataset: unknown name 'digit'; did you mean digits"),
        (["--image-size", "0"], "image_size: expected a number in [2, 4096]; got 0"),
    ):
        assert main(["export", str(run.run), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["export"]) == 2
    assert "checkpoint: name a run folder" in capsys.readouterr().err
