"""Images without labels beside the training images."""

import json
from pathlib import Path

import pytest
import torch

import hkd
from hkd.config import DistillConfig
from hkd.data import ArrayDataset, FileDataset, load_dataset, make_loader, open_data
from hkd.data.spec import DataSpec
from hkd.numerics.negatives import NegativeSampler
from tests.data.test_datasets import class_folders, encoded, picture, write_files, zipped


def loose(count: int, size: tuple[int, int] = (8, 8)) -> dict[str, bytes]:
    """Images at any depth."""
    return {f"{'deep/er/' * (n % 2)}{n}.png": encoded(picture(size, 1000 + n)) for n in range(count)}


def test_images_in_memory_join_behind_the_labelled_ones(tmp_path: Path) -> None:
    source = zipped(tmp_path / "more.zip", loose(7, (11, 9)))
    asked = DataSpec(limit_train=5)
    data, alone = open_data(asked, unlabelled=str(source)), open_data(asked)
    train, whole = data.train, load_dataset("digits")
    assert isinstance(train, ArrayDataset)
    assert train.labels[:50].equal(alone.train.labels) and train.labels[50:].tolist() == [-1] * 7
    assert train.images[:50].equal(alone.train.images) and train.images.shape == (57, 3, 8, 8)
    assert train.positions[50:].tolist() == [len(whole) + n for n in range(7)]
    assert data.digest != alone.digest == data.labelled.digest
    assert (data.mean, data.std) == (alone.mean, alone.std)
    assert data.describe().startswith("digits: 57 training images, 7 of them without a label, and 355 test images")


def test_the_rows_do_not_depend_on_how_many_labelled_images_take_part(tmp_path: Path) -> None:
    source = str(write_files(tmp_path / "more", loose(3)))
    few, many = (open_data(DataSpec(limit_train=n), unlabelled=source).train for n in (2, 9))
    assert few.positions[-3:].equal(many.positions[-3:])


def test_photographs_stream_from_both_places(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", class_folders((120, 100)))
    more = write_files(tmp_path / "more", loose(5, (130, 110)))
    data = open_data(DataSpec(dataset=f"folder:{photos}", image_size=100), unlabelled=str(more))
    assert isinstance(data.train, FileDataset) and len(data.train) == 17
    assert data.train.decode(12).size == (130, 110) and data.train.decode(0).size == (120, 100)
    loader = make_loader(data.train, 17, torch.device("cpu"), train=True, views=2, cache=tmp_path / "cache")
    batch = next(iter(loader.epoch(0)))
    assert sorted(batch.index.tolist()) == list(range(17)) and int((batch.label < 0).sum()) == 5
    again = next(iter(loader.epoch(0)))  # from the copy of the shrunken images
    assert again.image.equal(batch.image)


def test_of_a_data_set_with_splits_the_test_images_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = zipped(tmp_path / "photos.zip", class_folders())
    data = open_data(DataSpec(limit_train=2), unlabelled=str(source))
    assert int((data.train.labels < 0).sum()) == 12
    assert "the images in train/ are taken as unlabelled, not those in val/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b""}, "unlabelled: no images in"),
        ({"a.png": b"no image"}, "1 of 1 images taken from .* cannot be read"),
        ({}, "unlabelled: no folder or .zip archive at"),
    ],
)
def test_what_is_no_folder_of_images_is_told(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_files(tmp_path / "more", files)
    with pytest.raises(hkd.RequestError, match=message):
        open_data(DataSpec(), unlabelled=str(tmp_path / "more"))


def test_a_row_without_a_label_is_a_class_of_its_own() -> None:
    labels = torch.tensor([0, -1, 1, -1, 0, 1])
    sampler = NegativeSampler(6, 5, labels)
    rows, surplus = sampler.per_sample(torch.arange(6))
    for row, drawn in enumerate(rows):
        kept = drawn if surplus is None else drawn[~surplus[row]]
        alike = [row] if labels[row] < 0 else (labels == labels[row]).nonzero().flatten().tolist()
        assert sorted(kept.tolist()) == sorted(set(range(6)) - set(alike))


def config(folder: Path, name: str, **changes: object) -> DistillConfig:
    values = {
        "method": "hkd+kd", "student": "resnet8", "teacher": "resnet14", "epochs": 1, "batch_size": 16,
        "limit_train": 4, "device": "cpu", "tensorboard": False, "evaluate": "last", "run": str(folder / name),
        "unlabelled": str(folder / "more"), "teacher_cache": str(folder / "tables"),
    }  # fmt: skip
    return DistillConfig(**values | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    write_files(folder / "more", loose(24))
    return folder


def test_a_student_learns_from_both_and_its_teacher_from_the_labelled_alone(folder: Path) -> None:
    first = hkd.distill(config(folder, "first"))
    assert first.summary["train_images"] == 64
    assert json.loads((folder / "first" / "teacher" / "summary.json").read_text())["train_images"] == 40
    row = json.loads((folder / "first" / "metrics.jsonl").read_text().splitlines()[-1])
    right = row["train_top1"] / 100 * 40
    assert right == pytest.approx(round(right)) and right <= 40
    second = hkd.distill(config(folder, "second", teacher_checkpoint=str(folder / "first" / "teacher"), seed=0))
    assert second.summary["top1_last"] == pytest.approx(first.summary["top1_last"])
    assert second.summary["teacher_cache"]["misses"] == 0 < second.summary["teacher_cache"]["hits"]


def test_memories_may_know_an_unlabelled_image_by_the_teachers_class(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    built = NegativeSampler.__init__

    def watched(self: NegativeSampler, count: int, negatives: int, labels: torch.Tensor, seed: int) -> None:
        seen.append(labels)
        built(self, count, negatives, labels, seed)

    monkeypatch.setattr(NegativeSampler, "__init__", watched)
    hkd.distill(config(folder, "sure", pseudo_labels=0.0))
    assert "pseudo-labels: 24 of 24 images, the teacher is 0% sure" in capsys.readouterr().err
    assert int((seen[0] < 0).sum()) == 24 and int((seen[-1] < 0).sum()) == 0
    assert seen[0][:40].equal(seen[-1][:40])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kd", "pseudo_labels": 0.9}, "pseudo_labels: kd has no memory in which an image has a class"),
        ({"unlabelled": None, "pseudo_labels": 0.9}, "pseudo_labels: expected with --unlabelled"),
        ({"unlabelled": None, "unlabelled_share": 0.5}, "unlabelled_share: expected with --unlabelled"),
        ({"unlabelled_share": 1.0}, r"unlabelled_share: expected a number in \(0, 1\)"),
        ({"pseudo_labels": 2.0}, r"pseudo_labels: expected a number in \[0, 1\]"),
    ],
)
def test_pseudo_labels_without_a_place_are_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.distill(config(folder, "refused", **changes))
    assert not (folder / "refused").exists()
