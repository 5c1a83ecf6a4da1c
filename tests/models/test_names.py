"""Names of networks in files of weights: data, or code that is not run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import hkd
from hkd.models import model_of_file, names_code
from hkd.models.weights import read_about, read_model

PAYLOAD = "import pathlib\npathlib.Path({marker!r}).touch()\ndef net(classes): ...\n"
CODE = (
    "os:_exit", "runs.stranger.payload:net", "payload:net", "timm:hf-hub:x/y", "timm:hf_hub:x/y", "timm:",
    "timm:local-dir:/tmp/x", "hf-hub:timm/resnet18", "timm:resnet18/../x", "torchvision:a:b", ":", "a:", ":b",
    "timm:resnet18\n",
)  # fmt: skip


def weights(path: Path, about: Any, **tensors: torch.Tensor) -> Path:
    """A file of weights that says what somebody wants it to say."""
    text = about if isinstance(about, str) else json.dumps(about)
    state = tensors or hkd.create_model("resnet8", 10).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path, metadata={"hkd": text})
    return path


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert text.isprintable() and len(text) < 700, text
    return text


def test_which_names_are_code() -> None:
    assert all(map(names_code, CODE))
    plain = ("timm:resnet18.a1_in1k", "torchvision:resnet18", "timm:vit_tiny_patch16_224", "own")
    assert not any(map(names_code, (*hkd.list_models(), *plain)))


@pytest.mark.parametrize("name", CODE)
def test_a_name_that_is_code_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "runs" / "stranger"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "payload.py").write_text(PAYLOAD.format(marker=str(tmp_path / "ran")))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    file = weights(tmp_path / "runs" / "stranger" / "model.safetensors", {"model": name, "num_classes": 10})
    paths = list(sys.path)
    with pytest.raises(hkd.RequestError) as error:
        hkd.load_model(file)
    assert "--model" in one_line(error) or "printable" in one_line(error)
    assert not (tmp_path / "ran").exists() and sys.path == paths
    assert not [module for module in sys.modules if "payload" in module]


def test_a_whole_process_is_not_ended_by_a_file(tmp_path: Path) -> None:
    """As a user would meet it: a downloaded folder below the working directory, which is importable as a package."""
    marker = tmp_path / "ran"
    (tmp_path / "runs" / "stranger").mkdir(parents=True)
    (tmp_path / "runs" / "stranger" / "payload.py").write_text(PAYLOAD.format(marker=str(marker)))
    for number, name in enumerate(("os:_exit", "runs.stranger.payload:net")):
        weights(tmp_path / "runs" / "stranger" / f"{number}.safetensors", {"model": name, "num_classes": 10})
    code = (
        "import hkd, sys\n"
        "for number in range(2):\n"
        "    try:\n        hkd.load_model(f'runs/stranger/{number}.safetensors')\n"
        "    except hkd.RequestError as error:\n        print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(hkd.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("name the network yourself with --model (in Python model=...)") == 2, done.stdout
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["x" * 2**20, "a:" + "x" * 2**20, "\x1b[2J\x1b[Hgone", "resnet8\nresnet20", "a\udc80", "\u202eresnet8"]
)
def test_texts_that_would_fill_or_move_a_terminal_are_shortened_and_escaped(tmp_path: Path, name: str) -> None:
    file = weights(tmp_path / "m.safetensors", {"model": name, "num_classes": 10})
    with pytest.raises(
        hkd.RequestError, match=r"m\.safetensors: model: expected at most 200 printable characters"
    ) as e:
        hkd.load_model(file)
    one_line(e)


def test_a_network_of_its_own_has_to_be_named(tmp_path: Path) -> None:
    file = weights(tmp_path / "m.safetensors", {"model": "MyNet", "num_classes": 10})
    with pytest.raises(hkd.RequestError, match=r"holds a network of its own, 'MyNet'; name its factory with --model"):
        hkd.load_model(file)
    model, about = read_model(file, model="resnet8")
    assert model.name == "resnet8" and about["model"] == "MyNet"


def test_a_typed_name_is_enough(tmp_path: Path) -> None:
    model = hkd.create_model("tests.models.test_external:factory", 4)
    hkd.save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(hkd.RequestError, match="name the network yourself with --model"):
        hkd.load_model(tmp_path / "m.safetensors")
    again = hkd.load_model(tmp_path / "m.safetensors", model="tests.models.test_external:factory")
    assert torch.equal(again.module.head.weight, model.module.head.weight)


def test_the_option_that_would_allow_it_is_named(tmp_path: Path) -> None:
    for about in ({}, {"model": "os:_exit"}, {"model": "MyNet"}, {"model": ""}):
        with pytest.raises(hkd.RequestError, match="^teacher: .* with --teacher"):
            model_of_file(about, tmp_path / "t.safetensors", "teacher")
    assert model_of_file({"model": "timm:resnet18"}, "x") == "timm:resnet18"


def test_a_small_file_has_no_huge_network_built(tmp_path: Path) -> None:
    file = weights(tmp_path / "m.safetensors", {"model": "vgg13", "num_classes": 999_983})
    with pytest.raises(hkd.RequestError, match="num_classes: expected the length of a side of one of its tensors"):
        hkd.load_model(file)
    assert read_about(file)["num_classes"] == 999_983


@pytest.mark.parametrize("name", ["resnet8 ", "x" * 10**6, "a\nb", None, 8, ["resnet8"], b"resnet8"])
def test_typed_names_that_are_wrong_are_one_line(name: Any) -> None:
    with pytest.raises(hkd.RequestError, match="^model: ") as error:
        hkd.create_model(name, 10)
    one_line(error)


@pytest.mark.parametrize("classes", [1, 0, -1, 10.0, "10", None, True, 10**9, float("nan")])
def test_numbers_of_classes_that_are_wrong(classes: Any) -> None:
    with pytest.raises(hkd.RequestError, match="num_classes: expected a whole number from 2 to 1,000,000; got"):
        hkd.create_model("resnet8", classes)
