"""What stands beside the weights in a file, forged in every way."""

import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hkd
from hkd.models.about import FIELDS, checked
from hkd.models.weights import read_about, read_model
from tests.models.test_names import one_line, weights

GOOD = {
    "model": "resnet8", "num_classes": 3, "classes": ["a", "b", "ć"], "mean": [0.5, 0, 1], "std": [0.2, 1, 0.3],
    "image_size": 32, "crop": "fit", "dataset": "folder:/photos", "epoch": 7, "top1": 91.5,
}  # fmt: skip
WRONG: dict[str, list[Any]] = {
    "model": [1, None, ["resnet8"], "x" * 201, "a\tb", "\x1b[2J"],
    "num_classes": [1, 0, -3, 2.0, "3", True, None, 1_000_001, 10**400, [3]],
    "classes": [["a", "b"], "abc", ["a", "b", 3], ["a", "b", "c\n"], ["a", "b", "x" * 1001], [], {}, None,
                ["a", "b", "\ud800"]],
    "mean": [[0.5, 0.5], [0.5] * 4, 0.5, "0.5", [0.5, 0.5, "0.5"], [0.5, 0.5, None], [math.nan] * 3, [math.inf] * 3,
             [True] * 3, [10**400, 0, 0], None],
    "std": [[0.0, 1, 1], [-1, 1, 1], [math.nan] * 3, [1e-300] * 3, [1e300] * 3, None, [0.5] * 2],
    "image_size": [0, -1, 4097, 32.0, "32", True, None, [32]],
    "crop": ["centre crop", "", None, 1, ["fit"], {}],
    "dataset": [1, None, "x" * 4201, "a\nb", ["digits"]],
    "epoch": [-1, 1.5, "1", None, True, 10**10],
    "top1": [math.nan, math.inf, -math.inf, "91", None, [91], True, 10**400],
}  # fmt: skip


def header(path: Path, text: bytes, size: int | None = None, tensors: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + tensors)
    return path


def test_good_fields_are_read_and_others_dropped(tmp_path: Path) -> None:
    file = weights(tmp_path / "m.safetensors", {**GOOD, "note": "x" * 10**6, "command": ["rm"]})
    about = read_about(file)
    assert about == GOOD
    assert all(type(value) is float for value in (*about["mean"], *about["std"], about["top1"]))
    assert set(WRONG) == set(GOOD) == set(FIELDS), "every field is tested"


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]])
def test_a_wrong_field_is_one_line(tmp_path: Path, field: str, value: Any) -> None:
    file = weights(tmp_path / "m.safetensors", GOOD | {field: value})
    with pytest.raises(hkd.RequestError, match=rf"^checkpoint: \S+m\.safetensors: {field}: expected .*; got ") as error:
        read_about(file)
    one_line(error)


@pytest.mark.parametrize("field", ["model", "num_classes", "mean", "std"])
def test_a_field_that_others_need_is_not_missing(tmp_path: Path, field: str) -> None:
    file = weights(tmp_path / "m.safetensors", {name: GOOD[name] for name in GOOD if name != field})
    with pytest.raises(hkd.RequestError, match=rf": {field}: expected .*; got nothing"):
        read_about(file)


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", '"x"', "1", "null", "NaN", "[" * 10**5, "{" * 10**5, '{"model": 1' + "0" * 5000 + "}"]
)
def test_metadata_that_are_no_mapping(tmp_path: Path, text: str) -> None:
    file = weights(tmp_path / "m.safetensors", text)
    with pytest.raises(hkd.RequestError, match="^checkpoint: ") as error:
        read_about(file)
    one_line(error)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary().map(repr),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ANY = st.fixed_dictionaries({}, optional={name: st.just(GOOD[name]) | JUNK for name in GOOD})


@settings(max_examples=300, deadline=None)
@given(ANY | JUNK)
def test_whatever_stands_there_is_valid_or_one_line(values: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = weights(Path(folder) / "m.safetensors", json.dumps(values), x=torch.zeros(1))
        try:
            about = read_about(file)
        except hkd.RequestError as error:
            text = str(error)
            assert text.startswith(f"checkpoint: {file}") and text.isprintable() and len(text) < 700
        else:
            assert checked(about, file) == about
            assert set(about) <= set(GOOD)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (b"", None), (b"{}", 2**63), (b"{}", 16 * 2**20 + 1), (b"{}", 100), (b"[]", None), (b"\xff\xfe", None),
        (b"[" * 10**6, None), (b'{"__metadata__": 3}', None), (b'{"__metadata__": {"hkd": 3}}', None),
        (b'{"__metadata__": {"hkd": null}}', None), (b"nul", None), (b"\x00" * 100, None),
    ],
)  # fmt: skip
def test_headers_that_are_none(tmp_path: Path, text: bytes, size: int | None) -> None:
    file = header(tmp_path / "m.safetensors", text, size)
    model = hkd.create_model("resnet8", 10)
    for read in (read_about, lambda path: hkd.load_checkpoint(model, path)):
        with pytest.raises(hkd.RequestError, match=r"^checkpoint: \S+ (is not a readable|is truncated|does not)") as e:
            read(file)
        one_line(e)


@pytest.mark.parametrize("kind", ["fifo", "folder", "proc", "device", "socket", "missing"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("proc", "device"):
        path.symlink_to("/proc/self/environ" if kind == "proc" else "/dev/zero")
    elif kind == "socket":
        os.mknod(path, 0o140600)
    expected = "no file" if kind == "missing" else "is not a regular file"
    model = hkd.create_model("resnet8", 10)
    for read in (read_about, read_model, lambda path: hkd.load_checkpoint(model, path)):
        with pytest.raises(hkd.RequestError, match=expected):
            read(path)


def test_a_link_that_a_person_names_is_followed(tmp_path: Path) -> None:
    """As the cache of a hub has them."""
    file = weights(tmp_path / "blob", GOOD | {"num_classes": 10, "classes": list("0123456789")})
    (tmp_path / "m.safetensors").symlink_to(file)
    assert read_model(tmp_path / "m.safetensors")[1]["epoch"] == 7


@pytest.mark.parametrize("path", [None, 3, b"m.safetensors", ["m.safetensors"], "a\0b.safetensors", "x" * 5000])
def test_what_is_no_path(path: Any) -> None:
    for read in (read_about, hkd.load_model):
        with pytest.raises(hkd.RequestError, match="^checkpoint: ") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(hkd.RequestError, match=r"classes: expected 10 names; got 2"):
        hkd.save_model(hkd.create_model("resnet8", 10), tmp_path / "m.safetensors", classes=["a", "b"])
    assert not list(tmp_path.iterdir())
