"""Images that a table lists."""

import os
from pathlib import Path

import pytest
import torch

import hkd
from hkd.data import DataSpec, FileDataset, datasets, open_data, prepare
from tests.data.test_datasets import encoded, picture, write_files

IMAGES = {f"images/{n}.png": encoded(picture((12, 12), n)) for n in range(12)}
LABELS = ["cat", "dog", "eel"] * 4


def table(folder: Path, *lines: str, header: str = "path,label,split", encoding: str = "utf-8") -> str:
    write_files(folder, IMAGES)
    (folder / "photos.csv").write_bytes("\r\n".join((header, *lines, "")).encode(encoding))
    return f"csv:{folder / 'photos.csv'}"


def parted(*splits: str) -> list[str]:
    """A line for each image, whose splits are given in turn."""
    return [f"images/{n}.png,{label},{splits[n // 3 % len(splits)]}" for n, label in enumerate(LABELS)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_splits_of_a_table(tmp_path: Path, encoding: str) -> None:
    lines = parted("train", "Validation", "TRAIN", "test")
    name = table(tmp_path, *lines, header="path,label,split", encoding=encoding)
    train, val = hkd.load_dataset(name), hkd.load_dataset(name, "test")
    assert isinstance(train, FileDataset) and train.info.classes == ("cat", "dog", "eel")
    assert train.names == [f"images/{n}.png" for n in (0, 1, 2, 6, 7, 8)], "in the order of the table"
    assert val.labels.tolist() == [0, 1, 2] and torch.equal(val[1][0], hkd.data.images.to_tensor(picture((12, 12), 10)))
    assert prepare(train).info.image_size == 12
    data = open_data(DataSpec(dataset=name))
    assert data.describe().startswith(f"{name}: 6 training and 3 test images, 3 classes, 12x12")


def test_a_table_without_splits_is_given_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{n},./images/{n}.png,{label}" for n, label in enumerate(LABELS)]
    name = table(tmp_path, *lines, header="id, Path ,LABEL")
    data = open_data(DataSpec(dataset=name, holdout=0.25))
    assert (len(data.train), len(data.test)) == (9, 3)
    assert open_data(DataSpec(dataset=name)).holdout == 0.2
    assert "photos.csv has no evaluation split; --holdout 0.2 of its images is made one" in capsys.readouterr().err


def test_paths_may_lead_to_other_folders_and_labels_be_numbers(tmp_path: Path) -> None:
    write_files(tmp_path / "far", IMAGES)
    (tmp_path / "here").mkdir()
    lines = [f'"{tmp_path}/far/images/{n}.png",{n}' if n % 2 else f"../far/images/{n}.png,{n}" for n in range(12)]
    name = table(tmp_path / "here", *lines, header="path,label")
    data = hkd.load_dataset(name)
    assert data.info.classes == tuple(map(str, range(12))), "10 comes after 9"
    assert data.labels.tolist() == list(range(12)) and len(prepare(data)) == 12


def test_the_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    names = [table(tmp_path / place, *parted("train", "val")) for place in "ab"]
    first, second = (open_data(DataSpec(dataset=name)).digest for name in names)
    assert first == second


LINES = ("images/0.png,cat,train", "images/1.png,dog,train", "images/3.png,dog,val")


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("images/9.png,cat,train", LINES, r", line 1: expected a header .* path,label,split; got images/9.png"),
        ("path;label;split", LINES, "got path;label;split"), ("", (), "line 1: expected a header .*; got nothing"),
        ("path,label,label", LINES, "expected a header"),
        ("path,label,split", (), "has no line below its header"),
        (None, (*LINES, "images/4.png,cat"), "line 5: expected 3 fields; got 2"),
        (None, (*LINES, "images/4.png,,train"), "line 5: expected a label .*; got ''"),
        (None, (*LINES, ",cat,train"), "line 5: expected a path .*; got ''"),
        (None, (*LINES, "images/4.png,c\x07t,train"), "line 5: expected a label without control characters"),
        (None, (*LINES, "images/4.png,cat,trian"), "line 5: expected a split of train, .*; got 'trian'"),
        (None, ("", *LINES, "images/99.png,cat,train"), r"line 6: no file .*/images/99.png \(No such file"),
        (None, (*LINES, "images.png,cat,train"), "line 5: .*images.png is not a regular file"),
        (None, (*LINES, "images/4.svg,cat,train"), "line 5: expected an image .*; got images/4.svg"),
        (None, (*LINES, "./images/1.png,cat,val"), "line 5: ./images/1.png is in line 3, too"),
        (None, (*LINES, 'images/4.png,"cat"s,train'), "line 5: .* expected after"),
        (None, (*LINES, 'images/4.png,"cat,train'), "line 5: unexpected end of data"),
        (None, (*LINES, "images/4.png,eel,val"), "line 5: class 'eel' has no training images"),
        (None, [line.replace("train", "test") for line in LINES], "has no training images; its splits are test, val"),
        (None, LINES[:1], "expected at least two classes in .*; got 'cat' alone"),
    ],
)  # fmt: skip
def test_faulty_tables(tmp_path: Path, header: str | None, lines: tuple[str, ...], message: str) -> None:
    (tmp_path / "images.png").mkdir()
    name = table(tmp_path, *lines, header="path,label,split" if header is None else header)
    with pytest.raises(hkd.RequestError, match=message) as error:
        [hkd.load_dataset(name, split) for split in ("train", "val")]
    assert str(error.value).isprintable()


def test_tables_that_are_none(tmp_path: Path) -> None:
    for name, message in (
        ("csv:", "expected csv:FILE"),
        ("csv", "expected csv:FILE"),
        (f"csv:{tmp_path}", "no file /"),
        (f"csv:{tmp_path}/none.csv", "no file /.*none.csv"),
        ("csv:/dev/zero", "no file /dev/zero"),
    ):
        with pytest.raises(hkd.RequestError, match=message):
            hkd.load_dataset(name)
    (tmp_path / "latin.csv").write_bytes("path,label\na.png,k\xe4fer".encode("latin-1"))
    with pytest.raises(hkd.RequestError, match="latin.csv, line 2: expected UTF-8"):
        hkd.load_dataset(f"csv:{tmp_path}/latin.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(hkd.RequestError, match="no file"):
        hkd.load_dataset(f"csv:{tmp_path}/pipe.csv")
    assert "csv" not in datasets and "csv:FILE" in hkd.list_datasets()


def test_an_unreadable_image_is_named_once(tmp_path: Path) -> None:
    name = table(tmp_path, *parted("train", "val"))
    (tmp_path / "images/0.png").write_bytes(b"none")
    with pytest.raises(hkd.RequestError, match=r"1 of 6 images taken from .* cannot be read: images/0.png; fix"):
        open_data(DataSpec(dataset=name))
