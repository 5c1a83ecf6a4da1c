"""What is said of the images before a training."""

from pathlib import Path

import pytest
import torch

import hkd
from hkd.data import ArrayDataset, Data, DatasetInfo, DataSpec, open_data
from hkd.data.summary import summarise
from tests.data.test_datasets import class_folders, encoded, picture, write_files


def counted(*labels: int) -> Data:
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    part = ArrayDataset(images, torch.tensor(labels), DatasetInfo("own", ("ant", "bee\n", "cat")))
    return Data("own", part, part)


def test_classes_of_one_size() -> None:
    assert summarise(counted(0, 1, 2, 0, 1, 2)) == "2 training images in each class"
    assert summarise(counted(0, 1, 2, -1, -1)) == "1 training images in each class"


def test_classes_of_different_sizes() -> None:
    skewed = counted(0, 0, 0, 0, 1, 2, 2)
    words = r"1 (bee\n) to 4 (ant) training images in a class, imbalance 4.0"
    assert summarise(skewed) == f"{words}; see --balance"
    assert summarise(skewed, balanced=True) == words
    assert summarise(counted(0, 0, 1, 2)).endswith("imbalance 2.0")
    assert summarise(counted(0, 0, 1)) == "0 (cat) to 2 (ant) training images in a class, a class has none"


def test_sizes_of_files(tmp_path: Path) -> None:
    files = class_folders((120, 100)) | {"train/cat/0.png": encoded(picture((300, 50), 1))}
    data = open_data(DataSpec(dataset=f"folder:{write_files(tmp_path / 'photos', files)}"))
    same, sizes = summarise(data).splitlines()
    assert same == "4 training images in each class"
    assert sizes == "files of 120x100 to 300x50 pixels, the median shorter side 100 (12 looked at)"
    data = open_data(DataSpec(dataset=f"folder:{write_files(tmp_path / 'same', class_folders((120, 100)))}"))
    assert summarise(data).splitlines()[1] == "files of 120x100 pixels (12 looked at)"


def test_what_was_left_out(tmp_path: Path) -> None:
    files = class_folders() | {"train/cat/0.png": b"none", "val/dog/0.jpg": b"none", "val/dog/1.jpg": b"none"}
    name = f"folder:{write_files(tmp_path, files)}"
    data = open_data(DataSpec(dataset=name, bad_images="skip", limit_train=3))
    assert summarise(data).splitlines()[-1] == (
        "left out: 3 training images beyond the limits, 1 unreadable training images, 2 unreadable evaluation images"
    )


def test_it_is_said_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = hkd.TrainConfig(student="resnet8", epochs=1, limit_train=2, run=str(tmp_path / "run"), device="cpu")
    hkd.train(config)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2:4] == ["2 training images in each class", "left out: 1,422 training images beyond the limits"]
