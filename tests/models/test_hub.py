"""Weights that would have to be downloaded, on a machine without a network."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants

import hkd
from hkd.models import hub

PRETRAINED = ["timm:resnet10t", "torchvision:resnet18", "timm:tf_mobilenetv3_small_minimal_100"]


@pytest.fixture(params=["silent", "refusing"])
def no_network(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[threading.Event]:
    """Names that are never looked up, or connections that are refused; and nothing in the libraries' caches."""
    over = threading.Event()

    def blocked(*_: Any, **__: Any) -> Any:
        if request.param == "silent":
            over.wait(60)
        raise OSError("no network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    yield over
    over.set()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", PRETRAINED)
def test_it_answers_within_five_seconds_and_says_what_to_do(name: str) -> None:
    started = time.perf_counter()
    with pytest.raises(hkd.RequestError) as error:
        hkd.create_model(name, 10, pretrained=True)
    assert time.perf_counter() - started < 5
    assert f"the weights of {name} are not on this machine, and https://" in str(error.value)
    assert "cannot be reached; copy their file here and name it with --teacher-weights" in str(error.value)
    assert "\n" not in str(error.value)
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.usefixtures("no_network")
def test_what_was_downloaded_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), file)
    model: Any = hkd.create_model("torchvision:resnet18", 10, pretrained=True)
    assert model.module.conv1.weight.equal(source.conv1.weight)

    def build(name: str, **_: Any) -> Any:
        assert constants.HF_HUB_OFFLINE is True, "the hub's library takes files that it has"
        return made(name, num_classes=10)

    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", build)
    assert hkd.create_model("timm:resnet10t", 10, pretrained=True).normalisation is not None


def test_a_host_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert hub.reachable(f"http://127.0.0.1:{port}/x")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert hub.reachable("https://nowhere.invalid/x"), "the proxy is asked instead"
    assert not hub.reachable("https://nowhere.invalid/x")
