"""Uploads, to a stub of the Hub's interface on this machine, and the head of the model card."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

import hkd


class Hub(HTTPServer):
    """What is asked of it, and the files of its commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.say({"commitUrl": f"{self.server.address}/user/net/commit/1", "commitOid": "1"})
            return
        asked = json.loads(body)
        self.server.asked.append((self.command, self.path, asked))
        if self.server.refuses:
            self.say({"error": "no room"}, 403)
        elif self.path == "/api/repos/create":
            self.say({"url": f"{self.server.address}/user/net"})
        elif self.path.endswith("/preupload/main"):
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked["files"]]
            self.say({"files": files})
        elif self.path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        else:
            self.say({"error": f"unknown {self.path}"}, 404)

    def say(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "t"
    config = hkd.DistillConfig(
        run=str(folder), epochs=1, limit_train=4, teacher="resnet8", student="resnet8", method="kd", device="cpu",
        tensorboard=False,
    )  # fmt: skip
    return hkd.distill(config).run


def test_an_upload(hub: Hub, run: Path) -> None:
    asked = hkd.ExportConfig(formats=("onnx", "safetensors"), license="apache-2.0", data_license="CC BY 4.0")
    address = hkd.push_to_hub(run, "user/net", token="hf_secret", config=asked)
    assert address == f"{hub.address}/user/net/commit/1"
    assert sorted(hub.files) == ["README.md", "model.onnx", "model.safetensors"]
    assert hub.tokens == {"Bearer hf_secret"}
    made = next(asked for _, path, asked in hub.asked if path == "/api/repos/create")
    assert made["name"] == "net" and made["organization"] == "user"
    assert made.get("private") is True or made.get("visibility") == "private"
    assert not (run / "export").exists()
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.library_name == "hkd" and card.data.metrics == ["accuracy"]
    assert (
        "Of this network: apache-2.0. Of the training images: CC BY 4.0. Of the teacher's weights: unknown."
        in card.text
    )
    assert b"hf_secret" not in b"".join(hub.files.values())


def test_the_head_of_a_card(run: Path, tmp_path: Path) -> None:
    hkd.export(hkd.ExportConfig(checkpoint=str(run), formats=("safetensors",), output=str(tmp_path)))
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert text.startswith("---\n")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "license": "unknown", "library_name": "hkd", "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "safetensors"], "metrics": ["accuracy"],
    }  # fmt: skip
    assert "Of this network: unknown. Of the training images: unknown. Of the teacher's weights: unknown." in text
    assert huggingface_hub.ModelCard(text).data.pipeline_tag == "image-classification"


def test_what_is_refused(hub: Hub, run: Path, tmp_path: Path) -> None:
    asked = hkd.ExportConfig(formats=("safetensors",))
    for name in ("a/b/c", "", "user/na me", "--x"):
        with pytest.raises(hkd.RequestError, match="^repo_id: expected user/name"):
            hkd.push_to_hub(run, name, token="t", config=asked)
    with pytest.raises(hkd.RequestError, match="^token: the Hub needs one"):
        hkd.push_to_hub(run, "user/net", config=asked)
    with pytest.raises(hkd.RequestError, match="^checkpoint: no file"):
        hkd.push_to_hub(tmp_path, "user/net", token="t", config=asked)
    assert not hub.asked
    hub.refuses = True
    with pytest.raises(hkd.TrainingError, match=r"cannot upload to user/net on http://127.0.0.1:\d+ \(.*403"):
        hkd.push_to_hub(run, "user/net", token="t", config=asked)
    assert not hub.files


def test_a_hub_that_is_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(hkd.TrainingError, match="cannot upload to user/net"):
        hkd.push_to_hub(run, "user/net", token="t", config=hkd.ExportConfig(formats=("safetensors",)))


@pytest.mark.parametrize("name", ["Apache 2", "a: b", "", "x" * 70, "-a"])
def test_a_licence_is_a_name(run: Path, name: str) -> None:
    with pytest.raises(hkd.RequestError, match="^license: expected a name"):
        hkd.export(hkd.ExportConfig(checkpoint=str(run), license=name))


def test_a_card_does_not_say_where_a_folder_lies() -> None:
    from hkd.deploy.card import without_place

    assert without_place("folder:/home/somebody/photos") == "folder:photos" and without_place("stl10") == "stl10"
