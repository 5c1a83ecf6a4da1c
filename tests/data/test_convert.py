"""Data set objects of other libraries."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import hkd
from tests.data.test_datasets import class_folders, picture, write_files


class Pictures(torch.utils.data.Dataset):
    classes = ("a", "b")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return picture((9, 9), index), index % 2


def test_pairs_of_image_and_label() -> None:
    data = hkd.as_dataset(Pictures(), image_size=8)
    assert data[3][0].shape == (3, 8, 8)
    assert data.labels.tolist() == [0, 1, 0, 1] and data.info.classes == ("a", "b")
    assert hkd.as_dataset(data, image_size=4)[0][0].shape == (3, 4, 4)
    assert hkd.as_dataset(data, classes=("x", "y")).info.classes == ("x", "y")
    with pytest.raises(hkd.RequestError, match="has no images"):
        hkd.as_dataset([])
    with pytest.raises(hkd.RequestError, match="expected PIL images .* from list, .*; got Tensor"):
        hkd.as_dataset([(torch.rand(3, 8, 8), 0)])


def test_the_source_stays_as_it_is(tmp_path: Path) -> None:
    source = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders((40, 30)))}")
    before = source.info
    converted = hkd.as_dataset(source, image_size=10, classes=("x", "y", "z"))
    assert source.info is before and source.info.image_size is None
    assert source[0][0].shape == (3, 30, 40)
    assert converted[0][0].shape == (3, 10, 10) and converted.info.classes == ("x", "y", "z")


def test_rows_are_kept() -> None:
    part = hkd.data.limit(hkd.load_dataset("digits"), None, 1)
    assert part.rows is not None
    assert torch.equal(hkd.as_dataset(part, image_size=16).positions, part.rows)
