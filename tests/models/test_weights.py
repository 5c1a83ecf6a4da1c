"""Weights on disk: own files, the field's files, and files that are refused."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hkd
from tests.models.test_external import Own


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_own_files_rebuild_the_network(tmp_path: Path) -> None:
    model = hkd.create_model("resnet8", 5).to(memory_format=torch.channels_last)
    hkd.save_model(model, tmp_path / "m.safetensors", classes=list("abcde"))
    again, about = hkd.load_model(tmp_path / "m.safetensors")
    assert about == {"model": "resnet8", "num_classes": 5, "classes": list("abcde")}
    assert_same_weights(model, again)


def test_a_wrapped_network_is_stored_under_its_own_names(tmp_path: Path) -> None:
    model = hkd.wrap_model(Own(), image_size=32)
    hkd.save_model(model, tmp_path / "m.safetensors")
    plain = Own()
    hkd.load_checkpoint(plain, tmp_path / "m.safetensors")
    assert_same_weights(model.module, plain)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 240, "model": state, "accuracy": torch.tensor(79.4), "best_acc": np.float64(79.4)},
        lambda state: {"model": OrderedDict((f"module.{k}", v) for k, v in state.items())},
        lambda state: {"model": {f"module.student.{k}": v for k, v in state.items()}, "epoch": 1},
        lambda state: {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {"student": state, "method": {}, "state": {"epoch": 1}},
    ],
    ids=["plain", "repdistiller", "data-parallel", "mdistiller", "compiled", "run-folder"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_the_field_load(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    model, again = hkd.create_model("resnet8x4", 6), hkd.create_model("resnet8x4", 6)
    file = tmp_path / "ckpt_epoch_240.pth"
    torch.save(wrap(model.state_dict()), file, _use_new_zipfile_serialization=not legacy)
    hkd.load_checkpoint(again, file)
    assert_same_weights(model, again)


def test_another_architecture_is_told_apart(tmp_path: Path) -> None:
    hkd.save_model(hkd.create_model("resnet20", 10), tmp_path / "m.safetensors")
    with pytest.raises(hkd.RequestError, match=r"does not fit vgg8: .*missing, first block0"):
        hkd.load_checkpoint(hkd.create_model("vgg8", 10), tmp_path / "m.safetensors")


def test_another_number_of_classes_is_told(tmp_path: Path) -> None:
    hkd.save_model(hkd.create_model("resnet8", 10), tmp_path / "m.safetensors")
    with pytest.raises(hkd.RequestError, match=r"fc.weight is \(10, 64\) in the file, \(7, 64\) in the network"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 7), tmp_path / "m.safetensors")


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-done"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harm()}, "bad.pth")
    Path("worse.pth").write_bytes(pickle.dumps(Harm()))
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(hkd.RequestError, match="not loaded|corrupt"):
            hkd.load_checkpoint(hkd.create_model("resnet8", 2), name)
    assert not Path("harm-done").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_and_missing_files_are_told(tmp_path: Path, suffix: str) -> None:
    model, file = hkd.create_model("resnet8", 2), tmp_path / f"m{suffix}"
    with pytest.raises(hkd.RequestError, match="no file"):
        hkd.load_checkpoint(model, file)
    if suffix == ".pth":
        torch.save(model.state_dict(), file)
    else:
        hkd.save_model(model, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(hkd.RequestError, match="corrupt|not loaded"):
        hkd.load_checkpoint(model, file)


def test_a_network_with_a_part_called_module_keeps_all_of_it(tmp_path: Path) -> None:
    class Inside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)

    model, again = Inside(), Inside()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    hkd.load_checkpoint(again, tmp_path / "m.pt")
    assert_same_weights(model, again)


def test_tied_weights_are_written(tmp_path: Path) -> None:
    module = Own()
    module.aside.weight = module.head.weight
    hkd.save_model(hkd.wrap_model(module, image_size=32), tmp_path / "m.safetensors")
    hkd.load_checkpoint(Own(), tmp_path / "m.safetensors")


@pytest.mark.parametrize("content", [b"<html>not found</html>", bytes(range(256)) * 4, b"", b"\x80\x02."])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(hkd.RequestError, match="truncated or corrupt|holds no weights"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 2), tmp_path / "m.pth")


def test_a_file_without_weights_is_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(hkd.RequestError, match="holds no weights"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 2), tmp_path / "m.pt")
