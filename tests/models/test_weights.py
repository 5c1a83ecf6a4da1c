"""Weights on disk: own files, the field's files, and files that are refused."""

import argparse
import copy
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import hkd
from hkd.models.weights import read_model
from tests.models.test_external import Own
from tests.models.test_names import one_line


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_own_files_rebuild_the_network(tmp_path: Path) -> None:
    model = hkd.create_model("resnet8", 5).to(memory_format=torch.channels_last)
    hkd.save_model(model, tmp_path / "m.safetensors", classes=list("abcde"))
    again, about = read_model(tmp_path / "m.safetensors")
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
        lambda state: {"opt": argparse.Namespace(model="resnet8x4", lr_decay_epochs=[150, 180]), "model": state},
    ],
    ids=["plain", "repdistiller", "data-parallel", "mdistiller", "compiled", "run-folder", "with-options"],
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
    torch.save({"opt": argparse.Namespace(model=Harm()), "model": {}}, "hidden.pth")
    for name in ("bad.pth", "worse.pth", "hidden.pth"):
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


def forged(path: Path, **changes: Any) -> Path:
    """A resnet8's file with some tensors changed."""
    state = dict(hkd.create_model("resnet8", 10).state_dict()) | {n.replace("__", "."): v for n, v in changes.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


WRONG_TENSORS = [
    ("fc__bias", torch.zeros(10, dtype=torch.int64), "fc.bias: expected numbers that float32 can hold; got int64"),
    ("fc__bias", torch.zeros(10, dtype=torch.bool), "fc.bias: expected numbers that float32 can hold; got bool"),
    ("fc__bias", torch.zeros(10, dtype=torch.complex64), "expected numbers that float32 can hold; got complex64"),
    ("bn1__num_batches_tracked", torch.tensor(1.5), "expected numbers that int64 can hold; got float32"),
    ("fc__bias", torch.full((10,), torch.nan), "fc.bias: expected finite numbers; got nan"),
    ("fc__bias", torch.full((10,), -torch.inf), "fc.bias: expected finite numbers; got -inf"),
    ("bn1__running_var", torch.full((16,), torch.nan), "bn1.running_var: expected finite numbers; got nan"),
    ("fc__bias", torch.zeros(11), r"fc.bias is \(11,\) in the file, \(10,\) in the network"),
    ("fc__bias", torch.zeros(()), r"fc.bias is \(\) in the file, \(10,\) in the network"),
    ("fc\x1b[2J", torch.zeros(1), r"1 of the file's have no place, first 'fc\\x1b\[2J'"),
    ("x" * 10**6, torch.zeros(1), "1 of the file's have no place, first 'xxx"),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("name", "value", "message"), WRONG_TENSORS, ids=range(len(WRONG_TENSORS)))
def test_tensors_that_a_network_cannot_have(
    tmp_path: Path, suffix: str, name: str, value: torch.Tensor, message: str
) -> None:
    model = hkd.create_model("resnet8", 10)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(hkd.RequestError, match=f"^checkpoint: .*{message}") as error:
        hkd.load_checkpoint(model, forged(tmp_path / f"m{suffix}", **{name: value}))
    one_line(error)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "the network is as it was"
    )


@pytest.mark.parametrize("value", [torch.zeros(10).to_sparse(), torch.zeros(10, device="meta")], ids=["sparse", "meta"])
def test_unusual_tensors_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(hkd.RequestError, match="^checkpoint: ") as error:
        hkd.load_checkpoint(hkd.create_model("resnet8", 10), forged(tmp_path / "m.pt", fc__bias=value))
    one_line(error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_precisions_load(tmp_path: Path, dtype: torch.dtype) -> None:
    model = hkd.create_model("resnet8", 10)
    hkd.load_checkpoint(model, forged(tmp_path / "m.safetensors", fc__bias=torch.ones(10).to(dtype)))
    assert torch.equal(model.fc.bias, torch.ones(10))


def test_an_infinite_mask_among_the_buffers_loads(tmp_path: Path) -> None:
    class Masked(Own):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), -torch.inf))

    hkd.save_model(hkd.wrap_model(Masked(), image_size=32), tmp_path / "m.safetensors")
    hkd.load_checkpoint(Masked(), tmp_path / "m.safetensors")


def test_keys_that_are_no_names(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(hkd.RequestError, match="holds no weights"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 2), tmp_path / "m.pt")


def test_a_file_that_says_it_is_huge_is_not_read(tmp_path: Path) -> None:
    """Two terabytes of zeros in a sparse file."""
    count = 2**39
    text = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 4 * count)
    with pytest.raises(hkd.RequestError, match="conv1.weight is .* in the file"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 2), tmp_path / "m.safetensors")


def test_a_compressed_archive_is_no_checkpoint(tmp_path: Path) -> None:
    """PyTorch's files are not compressed; one of a gigabyte of zeros would be a megabyte."""
    torch.save(hkd.create_model("resnet8", 2).state_dict(), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "m.pt", "w", 8) as bomb:
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    with pytest.raises(hkd.RequestError, match="its entries are compressed"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 2), tmp_path / "m.pt")


def test_writing_follows_no_link_and_leaves_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept")
    (tmp_path / "run").mkdir()
    for name in ("m.safetensors", "m.safetensors.partial"):
        (tmp_path / "run" / name).symlink_to(secret)
    hkd.save_model(hkd.create_model("resnet8", 2), tmp_path / "run" / "m.safetensors")
    assert secret.read_text() == "kept"
    assert not (tmp_path / "run" / "m.safetensors").is_symlink()
    hkd.load_model(tmp_path / "run" / "m.safetensors")
    assert len(list((tmp_path / "run").iterdir())) == 2
    with pytest.raises(OSError, match="No such file"):
        hkd.save_model(hkd.create_model("resnet8", 2), tmp_path / "nowhere" / "m.safetensors")


def test_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"before")

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        hkd.save_model(hkd.create_model("resnet8", 2), tmp_path / "m.safetensors")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_a_file_without_weights_is_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(hkd.RequestError, match="holds no weights"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 2), tmp_path / "m.pt")
