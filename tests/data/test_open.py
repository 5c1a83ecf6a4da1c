"""The images of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hkd
from hkd.data import ArrayDataset, Dataset, DatasetInfo, FileDataset, datasets, open_data
from hkd.data.images import centre, to_tensor
from hkd.data.normalisation import LARGEST_SAMPLE, measure
from hkd.data.open import worker_count
from hkd.data.spec import DataSpec
from hkd.types import IMAGENET_MEAN, IMAGENET_STD
from tests.data.test_datasets import class_folders, encoded, picture, without, write_files


def photos(folder: Path, **sizes: Any) -> str:
    return f"folder:{write_files(folder / 'photos', class_folders(**sizes))}"


def plain_moments(images: list[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the channels in float64, over all pixels written out."""
    pixels = torch.cat([image.flatten(1) for image in images], dim=1).double() / 255
    return pixels.mean(1).tolist(), pixels.std(1, correction=0).tolist()


def test_digits() -> None:
    data = open_data(DataSpec())
    assert data.describe() == (
        "digits: 1,442 training and 355 test images, 10 classes, 8x8\n"
        "normalised by the data set's mean 0.305 0.305 0.305 and std 0.376 0.376 0.376"
    )
    assert (data.image_size, data.mean, data.std) == (8, (0.305,) * 3, (0.376,) * 3)
    part = open_data(DataSpec(limit_train=5, limit_classes=3))
    assert part.describe().startswith("digits: 15 training and 106 test images, 3 classes, 8x8\n")


def test_the_digest_says_which_images_a_run_has_seen(tmp_path: Path) -> None:
    specs = (
        DataSpec(),
        DataSpec(limit_train=5),
        DataSpec(limit_classes=5),
        DataSpec(image_size=16),
        DataSpec(holdout=0.2),
        DataSpec(holdout=0.2, holdout_seed=1),
    )
    digests = [open_data(spec).digest for spec in specs]
    assert len(set(digests)) == 6 and all(len(digest) == 16 for digest in digests)
    assert open_data(DataSpec(mean=(0.5, 0.5, 0.5))).digest == digests[0]
    here, there = (open_data(DataSpec(dataset=photos(tmp_path / place))) for place in "ab")
    assert here.digest == there.digest, "it does not matter where the images are stored"
    renamed = [hkd.as_dataset(part, classes=("cat", "dog", "emu")) for part in (here.train, here.test)]
    assert open_data(DataSpec(), *renamed).digest != here.digest


@pytest.mark.parametrize("size", [(12, 12), (40, 30)])
def test_a_folder_is_normalised_by_its_own_training_images(tmp_path: Path, size: tuple[int, int]) -> None:
    data = open_data(DataSpec(dataset=photos(tmp_path, size=size)))
    if size == (12, 12):
        seen = list(data.train.images)
    else:
        seen = [to_tensor(centre(data.train.decode(i), 224)) for i in range(12)]
    mean, std = plain_moments(seen)
    np.testing.assert_allclose(data.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(data.std, std, rtol=1e-12)
    for part in (data.train, data.test):
        assert (part.info.mean, part.info.std) == (data.mean, data.std)
    image = next(hkd.data.make_loader(data.train, 12, torch.device("cpu"), train=False).epoch(0)).image
    np.testing.assert_allclose(image.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(image.std((0, 2, 3), correction=0), 1, atol=1e-5)
    assert "normalised by the training images' own mean 0." in data.describe()


def test_the_size_of_streamed_images_is_described(tmp_path: Path) -> None:
    name = photos(tmp_path, size=(40, 30))
    counts = f"{name}: 12 training and 6 test images, 3 classes"
    varying, resized = (open_data(DataSpec(dataset=name, image_size=size)).describe() for size in (None, 100))
    assert varying.startswith(f"{counts}, images of varying size, shown at 224x224\n")
    assert resized.startswith(f"{counts}, shown at 100x100\n")


def test_a_given_normalisation_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, given = photos(tmp_path), (0.1, 0.2, 0.3)
    measured = open_data(DataSpec(dataset=name))
    half = open_data(DataSpec(dataset=name, std=given))
    assert (half.mean, half.std) == (measured.mean, given)
    assert half.describe().endswith("and the given std 0.100 0.200 0.300")
    monkeypatch.setattr("hkd.data.open.measure", None)
    both = open_data(DataSpec(dataset=name, mean=given, std=given))
    assert (both.mean, both.std) == (given, given)
    assert both.describe().endswith("normalised by the given mean 0.100 0.200 0.300 and std 0.100 0.200 0.300")
    digits = open_data(DataSpec(mean=given))
    assert (digits.mean, digits.std) == (given, (0.376,) * 3)
    with pytest.raises(hkd.RequestError, match=r"std: expected a number in \(0, 1\]; got 0"):
        open_data(DataSpec(std=(0.5, 0.0, 0.5)))
    with pytest.raises(hkd.RequestError, match=r"mean: expected a number in \[0, 1\]; got 123.7"):
        open_data(DataSpec(mean=(123.7, 116.3, 103.5)))


def test_named_data_sets_keep_their_constants(tmp_path: Path) -> None:
    write_files(tmp_path / "imagenet", class_folders((40, 30)))
    data = open_data(DataSpec(dataset="imagenet", data_root=str(tmp_path)))
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_what_is_measured() -> None:
    images = torch.randint(0, 256, (1500, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 7
    data = ArrayDataset(images, torch.zeros(1500), DatasetInfo("x", ("a",)))
    mean, std = measure(data, 5)
    expected_mean, expected_std = plain_moments(list(images))
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std[:2], expected_std[:2], rtol=1e-12)
    assert std[2] == 1 / 255, "a channel of one value can be divided by its deviation"


def test_a_stream_is_measured_on_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST_SAMPLE == 2000
    monkeypatch.setattr("hkd.data.normalisation.LARGEST_SAMPLE", 5)
    data = hkd.load_dataset(photos(tmp_path, size=(40, 30)))
    looked: list[int] = []
    prepared = FileDataset.prepared
    monkeypatch.setattr(
        FileDataset, "prepared", lambda self, index, *how: looked.append(index) or prepared(self, index, *how)
    )
    alone = measure(data, 32)
    assert sorted(looked) == [0, 2, 4, 7, 9], "evenly spaced"
    assert measure(data, 32, workers=3) == alone
    expected = plain_moments([to_tensor(centre(data.decode(i), 32)) for i in (0, 2, 4, 7, 9)])
    np.testing.assert_allclose(alone, expected, rtol=1e-12)


def test_unreadable_images_are_not_measured(tmp_path: Path) -> None:
    files = class_folders((40, 30)) | {"train/cat/1.png": b"no image"}
    name = f"folder:{write_files(tmp_path, files)}"
    message = r"cannot read \S+/train/cat/1.png \(not an image\); fix or remove it, or skip it with --bad-images skip$"
    with pytest.raises(hkd.RequestError, match=message):
        open_data(DataSpec(dataset=name))
    skipping = open_data(DataSpec(dataset=name, bad_images="skip"))
    seen = [to_tensor(centre(skipping.train.decode(i), 224)) for i in range(12) if i != 1]
    np.testing.assert_allclose((skipping.mean, skipping.std), plain_moments(seen), rtol=1e-12)


def test_another_normalisation_is_a_copy() -> None:
    data = open_data(DataSpec())
    other = data.normalised((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.mean, data.train.info.mean, data.test.info.mean) == ((0.305,) * 3,) * 3
    assert (other.mean, other.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) == (other.test.info.mean, other.test.info.std)
    assert other.train.images is data.train.images
    assert other.digest == data.digest
    assert other.describe().endswith(
        "normalised by the trained network's mean 0.100 0.200 0.300 and std 0.400 0.500 0.600"
    )


def test_data_set_objects_stay_as_they_are() -> None:
    train, test = hkd.load_dataset("digits"), hkd.load_dataset("digits", "test")
    before = train.info, test.info
    data = open_data(DataSpec(image_size=16, mean=(0.1, 0.2, 0.3)), train, test)
    assert (train.info, test.info) == before
    assert data.name == "digits" and data.image_size == 16 and data.test[0][0].shape == (3, 16, 16)
    pairs = [(picture((9, 9), n), n % 2) for n in range(8)]
    measured = open_data(DataSpec(), pairs, pairs[:2])
    expected = plain_moments(list(measured.train.images))
    np.testing.assert_allclose((measured.mean, measured.std), expected, rtol=1e-12)


def test_data_set_objects_come_in_pairs_or_with_a_holdout() -> None:
    pairs = [(picture((9, 9), n), n % 2) for n in range(8)]
    with pytest.raises(hkd.RequestError, match="test_data: expected a data set, or a holdout"):
        open_data(DataSpec(), pairs)
    with pytest.raises(hkd.RequestError, match="train_data: expected a data set beside test_data"):
        open_data(DataSpec(), None, pairs)
    data = open_data(DataSpec(holdout=0.25), pairs)
    assert (len(data.train), len(data.test)) == (6, 2)
    with pytest.raises(hkd.RequestError, match="of list differ: '2' is in one of them"):
        open_data(DataSpec(), pairs, [(picture((9, 9), 0), 2)])
    first, second = (hkd.as_dataset(pairs, classes=names) for names in (("a", "b"), ("b", "a")))
    with pytest.raises(hkd.RequestError, match="of list differ: they are in another order"):
        open_data(DataSpec(), first, second)


@pytest.mark.parametrize("size", [(12, 12), (40, 30)])
def test_a_holdout_is_evaluated_on_in_place_of_the_test_split(tmp_path: Path, size: tuple[int, int]) -> None:
    name = f"folder:{write_files(tmp_path / 'photos', without(class_folders(size), 'val'))}"
    data = open_data(DataSpec(dataset=name, holdout=0.25))
    assert "9 training and 3 held-out images" in data.describe()
    whole = hkd.load_dataset(name)
    for part, count in ((data.train, 9), (data.test, 3)):
        assert part.rows is not None and len(part) == count
        for position, row in enumerate(part.rows.tolist()):
            assert torch.equal(part[position][0], whole[row][0]) and part[position][1] == whole[row][1]
    if size == (12, 12):
        seen = list(data.train.images)
    else:
        seen = [to_tensor(centre(data.train.decode(i), 224)) for i in range(9)]
    np.testing.assert_allclose((data.mean, data.std), plain_moments(seen), rtol=1e-12, err_msg="training images alone")


def test_a_folder_without_an_evaluation_split_is_given_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"folder:{write_files(tmp_path / 'photos', without(class_folders(train=10), 'val'))}"
    data = open_data(DataSpec(dataset=name))
    assert (len(data.train), len(data.test), data.holdout) == (24, 6, 0.2)
    assert data.test.labels.bincount().tolist() == [2, 2, 2], "the same part of every class"
    assert capsys.readouterr().err == (
        f"warning: {name} has no evaluation split; --holdout 0.2 of its images is made one\n"
    )
    asked = open_data(DataSpec(dataset=name, holdout=0.2))
    assert asked.digest == data.digest and torch.equal(asked.test.positions, data.test.positions)
    specs = [hkd.RunSpec(data=DataSpec(dataset=name, holdout=holdout)).resolved() for holdout in (0.0, 0.2)]
    assert specs[0] == specs[1] and specs[0].data.holdout == 0.2, "evaluations find the same images by the run's file"


def test_the_test_split_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    digits = datasets["digits"]

    def watched(split: str, *arguments: Any) -> Dataset:
        opened.append(split)
        return digits(split, *arguments)

    monkeypatch.setattr(datasets, "_entries", datasets._entries | {"digits": watched})
    data = open_data(DataSpec(holdout=0.2))
    assert opened == ["train"]
    assert len(data.train) + len(data.test) == 1442
    same = open_data(DataSpec(holdout=0.2), hkd.load_dataset("digits"), object())
    assert same.digest == data.digest


def test_the_same_images_are_held_out_however_few_are_trained_on() -> None:
    def rows(**fields: Any) -> tuple[list[int], list[int]]:
        data = open_data(DataSpec(**{"holdout": 0.2, **fields}))
        return data.train.positions.tolist(), data.test.positions.tolist()

    train, held = rows()
    few, same = rows(limit_train=5)
    assert same == held and len(few) == 50 and set(few) < set(train)
    part, same = rows(train_fraction=0.3)
    assert same == held and set(few) < set(part) < set(train)
    assert set(rows(limit_classes=4)[1]) < set(held)
    assert rows(image_size=16) == (train, held)
    assert rows(holdout_seed=1)[1] != held


def test_a_class_must_be_large_enough_to_hold_out(tmp_path: Path) -> None:
    files = without(class_folders(), "train/dog") | {"train/dog/0.png": encoded(picture((12, 12), 1))}
    name = f"folder:{write_files(tmp_path, files)}"
    with pytest.raises(hkd.RequestError, match="class 'dog' of folder:.* has 1"):
        open_data(DataSpec(dataset=name, holdout=0.5))
    with pytest.raises(hkd.RequestError, match=r"holdout: expected a number in \[0, 1\); got 1"):
        open_data(DataSpec(dataset=name, holdout=1.0))


def test_runs_share_one_place_of_decoded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = photos(tmp_path)
    first = open_data(DataSpec(dataset=name), workers=2, cache=tmp_path / "cache")
    assert len([*(tmp_path / "cache").iterdir()]) == 2, "one file a split"
    monkeypatch.setattr(FileDataset, "image", None)
    assert open_data(DataSpec(dataset=name), cache=tmp_path / "cache").digest == first.digest


def test_as_many_workers_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(3) == 3
    for processors, workers in ((4, 4), (64, 8), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda processors=processors: processors)
        assert worker_count(None) == workers
