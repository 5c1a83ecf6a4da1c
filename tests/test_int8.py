"""Exports in 8 bits, their accuracy, latency and size, and the check of the card's code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import hkd
from hkd.cli import main
from hkd.deploy import Deployed, exporting
from hkd.deploy.exporting import onnx_model
from hkd.deploy.latency import measure
from hkd.deploy.quantise import normalising, quantise


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "t"
    config = hkd.TrainConfig(run=str(folder), student="resnet8", epochs=8, holdout=0.1, device="cpu", tensorboard=False)
    return hkd.train(config).run


def test_what_int8_leaves(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run), "--int8", "--formats", "onnx", "--output", str(tmp_path)]
    assert main(words) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["MODEL_CARD.md", "model.int8.onnx", "model.onnx"]
    out, card = capsys.readouterr().out, (tmp_path / "MODEL_CARD.md").read_text()
    line = re.search(r"model.int8.onnx: same class for .* images of the held-out part of digits, top-1 ([\d.]+) % "
                     r"\(before: ([\d.]+) %\)", out)  # fmt: skip
    assert line is not None and float(line[2]) > 80 and float(line[2]) - float(line[1]) <= 1
    assert re.search(r"model.int8.onnx: [\d.]+ MB, [\d.]+ ms \(95 %: [\d.]+\) for 1 image, .* for 32 images", out)
    assert re.search(r"times are medians with \d+ threads? of \w+", out)
    assert re.search(r"\| `model.int8.onnx` \| .* MB \| [\d.]+ \([\d.]+\) \| [\d.]+ \([\d.]+\) \|", card)

    sizes = {name: (tmp_path / name).stat().st_size for name in ("model.onnx", "model.int8.onnx")}
    assert sizes["model.int8.onnx"] < 0.5 * sizes["model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.int8.onnx"))
    assert session.get_inputs()[0].type == "tensor(uint8)"
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list("0123456789") and about["image_size"] == "8"
    test = hkd.load_dataset("digits", "test")
    images = np.stack([test[n][0].numpy() for n in range(len(test))])
    (logits,) = session.run(None, {"image": images})
    assert np.mean(logits.argmax(1) == test.labels.numpy()) > 0.8
    np.testing.assert_allclose(session.run(None, {"image": images[:1]})[0], logits[:1], atol=1e-4)


def test_the_normalisation_stays_in_float_and_the_weights_do_not() -> None:
    model = hkd.create_model("resnet8", 4).eval()
    proto = onnx_model(Deployed(model, (0.5,) * 3, (0.2,) * 3).eval(), 16, {"classes": list("abcd")})
    first = normalising(proto)
    assert [node.op_type for node in proto.graph.node if node.name in first] == ["Cast", "Mul", "Add"]
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    made = quantise(proto, images)
    of = {node.name: node for node in made.graph.node}
    assert not [name for name in of if "QuantizeLinear" in name and of[name].input[0] == "image"]
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    large = [tensor for tensor in stored.values() if np.prod(tensor.dims) > 400]
    assert large and all(tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT32) for tensor in large)


def test_batch_norms_that_no_convolution_takes_stay_in_float(caplog: pytest.LogCaptureFixture) -> None:
    model = hkd.create_model("wrn_16_1", 4).eval()  # its batch norms stand before the activations
    proto = onnx_model(Deployed(model, (0.5,) * 3, (0.2,) * 3).eval(), 16, {"classes": list("abcd")})
    made = quantise(proto, np.random.default_rng(0).integers(0, 256, (16, 3, 16, 16), dtype=np.uint8))
    norms = [node for node in made.graph.node if node.op_type == "BatchNormalization"]
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert norms and all(stored[name] == onnx.TensorProto.FLOAT for node in norms for name in node.input[1:])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_calibration_is_on_training_images_without_the_held_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def recorded(proto: Any, calibration: np.ndarray) -> Any:
        seen.append(calibration)
        return quantise(proto, calibration)

    monkeypatch.setattr(exporting, "quantise", recorded)
    hkd.export(hkd.ExportConfig(
        checkpoint=str(run), formats=("onnx",), output=str(tmp_path), int8=True, calibration_images=50, max_drop=5.0
    ))  # fmt: skip
    from hkd.data import DataSpec, open_data

    data = open_data(DataSpec(dataset="digits", holdout=0.1))
    known = {image.numpy().tobytes() for image in data.train.images}
    assert len(seen[0]) == 50
    assert all(image.tobytes() in known for image in seen[0])
    chosen = torch.arange(50) * len(data.train) // 50
    np.testing.assert_array_equal(seen[0], data.train.images[chosen].numpy())


def test_what_loses_too_much_is_refused_with_the_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    untrained = Deployed(hkd.create_model("resnet8", 10), (0.3,) * 3, (0.3,) * 3).eval()
    broken = onnx_model(untrained, 8, {"classes": list("0123456789")})
    monkeypatch.setattr(exporting, "quantise", lambda *_: broken)
    words = ["export", str(run), "--int8", "--formats", "onnx,safetensors", "--output", str(tmp_path)]
    assert main([*words, "--max-drop", "2.5"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    pattern = r"int8: top-1 on the held-out part of digits falls from (\S+) % to (\S+) %, (\S+) points, and --max-drop"
    found = re.search(pattern + " is 2.5", line)
    assert found and float(found[1]) - float(found[2]) == pytest.approx(float(found[3]), abs=0.02)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["MODEL_CARD.md", "model.onnx", "model.safetensors"]
    assert "model.int8" not in (tmp_path / "MODEL_CARD.md").read_text()
    assert main([*words, "--max-drop", "100"]) == 0


def test_int8_needs_test_images_and_an_onnx_file(tmp_path: Path) -> None:
    about = {"classes": list("abcd"), "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32, "dataset": "lost"}
    file = tmp_path / "m.safetensors"
    hkd.save_model(hkd.create_model("resnet8", 4), file, **about)
    for asked, message in (
        ({"int8": True}, "^dataset: name the data set|^int8: expected the test images"),
        ({"int8": True, "formats": ("torch",)}, "^int8: is for the ONNX file; got formats torch"),
        ({"opset": 20, "formats": ("torch",)}, "^opset: is for the ONNX file"),
        ({"max_drop": 1.0}, "^max_drop: is for int8"),
        ({"calibration_images": 3}, "^calibration_images: is for int8"),
    ):
        with pytest.raises(hkd.RequestError, match=message):
            hkd.export(hkd.ExportConfig(checkpoint=str(file), output=str(tmp_path / "e"), **asked))  # type: ignore[arg-type]
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_asked_one(run: Path, tmp_path: Path, opset: int) -> None:
    hkd.export(hkd.ExportConfig(checkpoint=str(run), formats=("onnx",), output=str(tmp_path), opset=opset))
    versions = {entry.domain: entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import}
    assert versions[""] == opset


def test_code_that_sees_something_else_is_an_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hkd.ExportConfig(checkpoint=str(run), formats=("onnx",), output=str(tmp_path))
    code = "import sys\nfor file in sys.argv[1:]:\n    print('none')"
    monkeypatch.setattr(exporting, "card_code", lambda crop: code)
    with pytest.raises(hkd.TrainingError, match="its code says none of exif.jpg, where the network says"):
        hkd.export(asked)
    monkeypatch.setattr(exporting, "card_code", lambda crop: "raise SystemExit('broken')")
    with pytest.raises(hkd.TrainingError, match=r"MODEL_CARD.md: its code fails \(broken\)"):
        hkd.export(asked)


def test_modules_that_lie_in_the_folder_are_not_imported(run: Path, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)")
    done = hkd.export(hkd.ExportConfig(checkpoint=str(run), formats=("onnx",), output=str(tmp_path)))
    assert "same class for 8 image files" in done.card and not (tmp_path / "ran").exists()


def test_latency_is_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def run_for(images: np.ndarray) -> None:
        assert images.shape[1:] == (3, 7, 7) and images.dtype == np.uint8
        now[0] += 0.002 * len(images)

    found = measure(run_for, 7)
    assert found.median == pytest.approx({1: 2.0, 32: 64.0}) and found.p95 == pytest.approx({1: 2.0, 32: 64.0})
