"""Data set objects of other libraries."""

from pathlib import Path
from typing import Any

import numpy as np
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


IMAGE = picture((8, 8), 0)


class Items:
    """A data set of given items."""

    def __init__(self, *items: Any, classes: Any = None) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def Feature(kind: str, **fields: Any) -> Any:
    """As the data sets of Hugging Face describe a column."""
    return type(kind, (), fields)()


ClassLabel = Feature("ClassLabel", names=["ant", "bee"])


class Table:
    """What is used of the interface of Hugging Face's ``datasets.Dataset``: rows by name, and their features."""

    def __init__(self, *rows: dict[str, Any], **features: Any) -> None:
        self.rows, self.features = rows, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        yield IMAGE, 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 0)]), "got DataLoader; its .dataset is one of list"),
        (Stream(), "expected a data set with a length and items by number; got Stream"), (None, "got NoneType"),
        ({"train": Table(), "test": Table()}, "got dict; pass one of its splits, train, test"),
        (Table(image=Feature("Image")), "expected one ClassLabel among the features of Table; got image .Image.; its"),
        (Table(label=ClassLabel), "expected one Image among .*; got label .ClassLabel.; its cast_column makes one"),
        (Table(image=Feature("Image"), fine=ClassLabel, coarse=ClassLabel), "coarse .*; its remove_columns leaves"),
        ("digits", "expected a data set .* got str"), ({0: (IMAGE, 0)}, "got dict"),
        (iter([(IMAGE, 0)]), "got list_iter"),
        (Items({"image": IMAGE, "label": 0}), r"item 0 is one with the keys image, label"),
        (Items(IMAGE), "expected items .image, class. from Items; item 0 is Image"),
        (Items((IMAGE,)), "item 0 is tuple"),
        (Items((IMAGE, 0), None), "item 1 is NoneType"), (Items("ab"), "item 0 is str"),
        (Items((IMAGE, "cat")), "expected whole numbers as classes from Items; item 0 has 'cat'"),
        (Items((IMAGE, 0.5)), "item 0 has 0.5"), (Items((IMAGE, float("nan"))), "item 0 has nan"),
        (Items((IMAGE, None)), "item 0 has None"), (Items((IMAGE, torch.tensor([0, 1]))), "item 0 has tensor"),
        (Items((IMAGE, 10**30)), "item 0 has 1000"), (Items((IMAGE, 10**9), (IMAGE, 0)), "labels below 1,000,000"),
        (Items((IMAGE, -2), (IMAGE, 0)), r"expected labels in \[0, 0\], .*; got -2 to 0"),
        (Items((IMAGE, 2), (IMAGE, 0), classes=["a", "b"]), r"expected labels in \[0, 1\], .*; got 0 to 2"),
        (Items((IMAGE, 2), classes="abc"), "classes: expected a list of names; got 'abc'"),
        (Items((IMAGE, 0), classes=["a\n"]), "classes: expected names without control characters"),
        (Items((torch.zeros(3, 8, 8), 0)), r"got Tensor torch.float32 of shape \(3, 8, 8\)"),
        (Items((np.zeros((8, 8, 3), np.uint8), 0)), r"got ndarray uint8 of shape \(8, 8, 3\)"),
        (Items((torch.zeros(1, 8, 8, dtype=torch.uint8), 0)), r"of shape \(1, 8, 8\)"),
        (Items((torch.zeros(3, 0, 0, dtype=torch.uint8), 0)), r"of shape \(3, 0, 0\)"),
        (Items((Image.new("F", (8, 8)), 0)), "got an Image of mode F"),
        (Items((Image.new("RGB", (0, 8)), 0)), r"mode RGB and size \(0, 8\)"), (Items(), "Items has no images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("image_size", [None, 4])
def test_what_is_no_data_set_of_images(source: Any, message: str, image_size: int | None) -> None:
    with pytest.raises(hkd.RequestError, match=message) as error:
        hkd.as_dataset(source, image_size)
    assert str(error.value).isprintable()


def test_a_data_set_of_hugging_face() -> None:
    rows = [{"id": n, "label": n % 2, "photo": picture((8, 8), n)} for n in range(4)]
    source = Table(*rows, id=Feature("Value"), label=ClassLabel, photo=Feature("Image"))
    data = hkd.as_dataset(source)
    assert data.info.classes == ("ant", "bee") and data.labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(data[3][0], hkd.as_dataset([(rows[3]["photo"], 0)])[0][0])
    part = hkd.as_dataset(torch.utils.data.Subset(source, [1, 2]), image_size=4)  # type: ignore[arg-type]
    assert part.labels.tolist() == [1, 0] and part.info.classes == ("ant", "bee")
    undecoded = Table({"label": 0, "photo": {"bytes": b"", "path": None}}, label=ClassLabel, photo=Feature("Image"))
    with pytest.raises(hkd.RequestError, match="expected PIL images .*; got dict"):
        hkd.as_dataset(undecoded)


def test_a_data_set_of_the_library_of_hugging_face(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    write_files(tmp_path, class_folders())
    splits = library.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    data, folder = hkd.as_dataset(splits["train"]), hkd.load_dataset(f"folder:{tmp_path}")
    assert data.info.classes == folder.info.classes == ("cat", "dog", "eel")
    assert data.labels.tolist() == folder.labels.tolist() and torch.equal(data[5][0], folder[5][0])
    with pytest.raises(hkd.RequestError, match="got DatasetDict; pass one of its splits, train, "):
        hkd.as_dataset(splits)


def test_a_subset_keeps_the_names_of_the_classes() -> None:
    named = Items(*((IMAGE, n % 3) for n in range(6)), classes=["a", "b", "c"])
    inner = torch.utils.data.Subset(named, [0, 1, 3])  # type: ignore[arg-type]
    assert hkd.as_dataset(torch.utils.data.Subset(inner, [2, 1])).info.classes == ("a", "b", "c")
    ours = torch.utils.data.Subset(hkd.load_dataset("digits"), [5, 0])  # type: ignore[arg-type]
    assert hkd.as_dataset(ours).info.classes == hkd.load_dataset("digits").info.classes
    unnamed = torch.utils.data.Subset([(IMAGE, 0), (IMAGE, 1)], [1])  # type: ignore[arg-type]
    assert hkd.as_dataset(unnamed).info.classes == ("0", "1")


def test_numbers_of_other_libraries_are_classes() -> None:
    items = Items(*((IMAGE, label) for label in (np.int64(1), torch.tensor(0), torch.tensor([1]), 1.0, True)))
    assert hkd.as_dataset(items).labels.tolist() == [1, 0, 1, 1, 1]
    assert hkd.as_dataset(Items((IMAGE, -1)), classes=("a", "b")).labels.tolist() == [-1]


@pytest.mark.parametrize("size", [0, -1, 4097, 8.0, "8", True, [8], float("nan")])
def test_sides_that_are_none(size: Any) -> None:
    for call in (
        lambda: hkd.as_dataset(Pictures(), size),
        lambda: hkd.as_dataset(hkd.load_dataset("digits"), size),
        lambda: hkd.load_dataset("digits", image_size=size),
    ):
        with pytest.raises(hkd.RequestError, match="^image_size: expected a whole number from 1 to 4,096; got"):
            call()
    assert hkd.load_dataset("digits", image_size=np.int64(4))[0][0].shape == (3, 4, 4)


def test_too_few_names_for_the_classes(tmp_path: Path) -> None:
    for size in ((12, 12), (120, 100)):
        source = hkd.load_dataset(f"folder:{write_files(tmp_path / str(size[0]), class_folders(size))}")
        with pytest.raises(hkd.RequestError, match=r"expected labels in \[0, 1\], .*; got 0 to 2"):
            hkd.as_dataset(source, classes=("a", "b"))


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
