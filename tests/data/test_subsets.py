"""Parts of a data set."""

import hashlib
from pathlib import Path

import pytest
import torch

import hkd
from hkd.data import ArrayDataset, DatasetInfo, hold_out, limit
from hkd.data.randomness import draws
from tests.data.test_datasets import class_folders, write_files


def dataset(counts: tuple[int, ...]) -> ArrayDataset:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    return ArrayDataset(images, labels, DatasetInfo("noise", tuple("abcdefgh"[: len(counts)])))


def test_limits_keep_the_first_images_of_the_first_classes(tmp_path: Path) -> None:
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders())}")
    part = limit(data, 2, 3)
    assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert part.info.classes == ("cat", "dog")
    assert torch.equal(part[3][0], data[4][0])
    for classes, per_class in ((1, None), (4, None), (None, 0)):
        with pytest.raises(hkd.RequestError, match="limit_"):
            limit(data, classes, per_class)


def test_rows_are_positions_in_the_whole_split() -> None:
    whole = dataset((20, 20, 20))
    assert whole.rows is None and whole.positions.tolist() == list(range(60))
    part = limit(whole, 2, 10).select(torch.tensor([3, 1]), whole.info)
    assert part.rows is not None
    for row, (image, label, _) in zip(part.rows.tolist(), part, strict=True):
        assert torch.equal(image, whole[row][0]) and label == whole[row][1]


def test_a_holdout_is_a_part_of_each_class() -> None:
    whole = dataset((40, 10, 3, 2))
    remaining, held = hold_out(whole, 0.2, 0)
    assert held.labels.bincount().tolist() == [8, 2, 1, 1]
    assert remaining.labels.bincount().tolist() == [32, 8, 2, 1]
    assert sorted([*remaining.positions.tolist(), *held.positions.tolist()]) == list(range(55))
    for part in (remaining, held):
        assert torch.equal(part.images, whole.images[part.positions])
    assert hold_out(whole, 0.99, 0)[0].labels.bincount().tolist() == [1, 1, 1, 1]
    assert hold_out(whole, 0.001, 0)[1].labels.bincount().tolist() == [1, 1, 1, 1]


def test_a_holdout_depends_on_its_seed_alone() -> None:
    whole = dataset((40, 40))
    held = hold_out(whole, 0.25, 7)[1].positions.tolist()
    torch.manual_seed(5)
    assert hold_out(whole, 0.25, 7)[1].positions.tolist() == held
    others = [hold_out(whole, 0.25, seed)[1].positions.tolist() for seed in range(200)]
    assert len({tuple(rows) for rows in others}) == 200
    share = torch.tensor(others).flatten().bincount(minlength=80) / 200
    assert share.sub(0.25).abs().max() < 0.13, "every image is held out as often as any other"
    assert held == [1, 4, 5, 15, 20, 23, 26, 34, 37, 43, 44, 46, 48, 50, 51, 56, 61, 69, 70, 79], (
        "the same in every version and on every machine"
    )


def test_classes_that_are_not_used_change_no_holdout() -> None:
    whole = dataset((30, 30, 30))
    held = hold_out(whole, 0.2, 3)[1]
    limited = hold_out(limit(whole, 2, None), 0.2, 3)[1]
    assert torch.equal(limited.positions, held.positions[held.labels < 2])


def test_a_class_of_one_image_cannot_be_held_out() -> None:
    with pytest.raises(
        hkd.RequestError, match="holdout: expected at least 2 images of each class, .*; class 'b' of noise has 1"
    ):
        hold_out(dataset((30, 1)), 0.2, 3)


def test_images_without_a_label_are_never_held_out() -> None:
    whole = dataset((10, 10))
    whole.labels[::5] = -1
    remaining, held = hold_out(whole, 0.5, 0)
    assert (held.labels >= 0).all()
    assert (remaining.labels == -1).sum() == 4


def test_draws_are_a_splitmix64_stream() -> None:
    start, bits = int.from_bytes(hashlib.sha256(b"x").digest()[:8], "little"), 2**64
    for row, drawn in zip((0, 1, 12345), draws("x", torch.tensor([0, 1, 12345])).tolist(), strict=True):
        z = (start + (row + 1) * 0x9E3779B97F4A7C15) % bits
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % bits
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % bits
        assert drawn == z ^ (z >> 31)
