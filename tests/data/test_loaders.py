"""The loaders against plain per-image re-statements."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hkd
from hkd.data import ArrayDataset, DatasetInfo, augment, make_loader
from hkd.data.loader import Batches
from hkd.data.memory_loader import MemoryLoader
from hkd.data.stream_loader import StreamLoader
from hkd.types import Share
from tests.data.test_datasets import class_folders, encoded, picture, write_files

CPU = torch.device("cpu")
EXTRA = {"train/cat/extra.png": encoded(picture((120, 100), 7))}


def dataset(count: int = 10, size: int = 16, flip: bool = True) -> ArrayDataset:
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    info = DatasetInfo("noise", ("a", "b"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), flip=flip)
    return ArrayDataset(images, torch.arange(count) % 2, info)


def normalised(image: Tensor, info: DatasetInfo) -> Tensor:
    mean, std = (torch.tensor(channels, dtype=torch.float64).view(3, 1, 1) for channels in info.normalisation)
    return (image.double() / 255 - mean) / std


def all_views(image: Tensor, padding: int, flip: bool) -> list[Tensor]:
    """Every view that the augmentation may choose, in the order of their numbers; without flip every other number."""
    side = image.shape[1]
    padded = torch.zeros(3, side + 2 * padding, side + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + side, padding : padding + side] = image
    views = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + side, left : left + side]
            views += [crop, crop.flip(2)] if flip else [crop]
    return views


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_are_padded_crops(flip: bool) -> None:
    data = dataset(flip=flip)
    seen = set()
    loader = MemoryLoader(data, 4, CPU, train=True, seed=1)
    for epoch in range(60):
        for batch in loader.epoch(epoch):
            assert batch.view.dtype == torch.int64
            for image, label, index, number in zip(batch.image, batch.label, batch.index, batch.view, strict=True):
                views = all_views(data.images[index], padding=2, flip=flip)
                matches = [
                    n
                    for n, view in enumerate(views)
                    if torch.allclose(normalised(view, data.info), image.double(), atol=1e-5)
                ]
                assert matches == [int(number) if flip else int(number) // 2]
                assert flip or number % 2 == 0
                assert label == data.labels[index]
                seen.add(matches[0])
    assert len(seen) == (50 if flip else 25), "all offsets and both directions occur, image by image"


def test_evaluation_images_come_as_they_are_in_order() -> None:
    data = dataset()
    batches = list(MemoryLoader(data, 4, CPU, train=False).epoch(0))
    assert [len(b.label) for b in batches] == [4, 4, 2]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(10))
    assert all(b.view is None and b.strong is None for b in batches)
    expected = torch.stack([normalised(image, data.info) for image in data.images])
    torch.testing.assert_close(torch.cat([b.image for b in batches]).double(), expected, rtol=1e-5, atol=1e-5)
    assert batches[0].image.is_contiguous(memory_format=torch.channels_last)


def test_large_images_are_evaluated_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset()
    side = data.images.shape[2]
    monkeypatch.setattr("hkd.data.images.PIXELS_AT_ONCE", 3 * side**2)
    for train, sizes in ((False, [3, 3, 3, 1]), (True, [4, 4, 2])):
        assert [len(batch.label) for batch in make_loader(data, 4, CPU, train=train).epoch(0)] == sizes


@pytest.mark.parametrize("train", [True, False])
def test_an_epoch_is_a_permutation_that_its_number_decides(train: bool) -> None:
    def epoch(number: int, seed: int = 0) -> tuple[list[int], Tensor]:
        batches = list(MemoryLoader(dataset(), 4, CPU, train=train, seed=seed).epoch(number))
        return torch.cat([b.index for b in batches]).tolist(), torch.cat([b.image for b in batches])

    (order, images), (again, same), (other, _) = epoch(5), epoch(5), epoch(6)
    assert sorted(order) == list(range(10))
    assert order == again and torch.equal(images, same)
    assert (order != other) == train
    assert (order != epoch(5, seed=1)[0]) == train


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_views_depend_on_seed_epoch_and_index_alone(tmp_path: Path, workers: int) -> None:
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders((120, 100)))}")
    loader = make_loader(data, 5, CPU, train=True, seed=3, workers=workers)
    assert isinstance(loader, StreamLoader)
    by_index = {int(i): image for b in loader.epoch(2) for i, image in zip(b.index, b.image, strict=True)}
    alone = make_loader(data, 12, CPU, train=True, seed=3, workers=0)
    batch = next(alone.epoch(2))
    assert batch.image.shape == (12, 3, 224, 224)
    for index, image in zip(batch.index.tolist(), batch.image, strict=True):
        assert torch.equal(image, by_index[index])
    first = next(alone.epoch(3))
    assert not torch.equal(first.image[first.index.argsort()], batch.image[batch.index.argsort()])


def test_streamed_evaluation_sees_the_middle(tmp_path: Path) -> None:
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders((300, 256)))}", "val")
    batch = next(make_loader(data, 6, CPU, train=False).epoch(0))
    middle = data.image(0)[:, 16:240, 38:262]
    torch.testing.assert_close(batch.image[0].double(), normalised(middle, data.info), rtol=1e-5, atol=1e-5)
    assert batch.index.tolist() == list(range(6))


@pytest.mark.parametrize("stream", [True, False])
def test_a_single_image_is_skipped_in_training(tmp_path: Path, stream: bool) -> None:
    data = dataset()
    if stream:
        data = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders((120, 100), train=3) | EXTRA)}")
    assert len(data) == 10
    seen: set[int] = set()
    loader = make_loader(data, 3, CPU, train=True)
    for epoch in range(12):
        batches = list(loader.epoch(epoch))
        assert [len(b.label) for b in batches] == [3, 3, 3]
        assert len(batches) == len(loader)
        seen |= {int(i) for b in batches for i in b.index}
    assert seen == set(range(10)), "another image is skipped each time"
    assert sum(len(b.label) for b in make_loader(data, 3, CPU, train=False).epoch(0)) == 10


def test_mirroring_can_be_switched_off() -> None:
    loader = make_loader(dataset(), 4, CPU, train=True, flip=False)
    for batch in loader.epoch(0):
        for image, index in zip(batch.image, batch.index, strict=True):
            views = all_views(dataset().images[index], padding=2, flip=False)
            assert any(torch.allclose(normalised(v, dataset().info), image.double(), atol=1e-5) for v in views)


def test_a_corrupt_image_in_a_stream_is_one_line(tmp_path: Path) -> None:
    files = class_folders((120, 100)) | {"train/cat/1.png": b"no image"}
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, files)}", image_size=120)
    for workers in (0, 1):
        message = r"^dataset: cannot read \S+/train/cat/1.png \(not an image\); fix or remove it, or skip it with"
        with pytest.raises(hkd.RequestError, match=message):
            list(make_loader(data, 4, CPU, train=True, workers=workers).epoch(0))


def test_a_last_batch_is_what_remains() -> None:
    loader = MemoryLoader(dataset(), 4, CPU, train=True)
    assert len(loader) == 3
    assert [len(b.label) for b in loader.epoch(0)] == [4, 4, 2]


def views_of(loader: MemoryLoader, epoch: int, done: int = 0) -> dict[int, tuple[int, Tensor]]:
    """The view and the pixels of each image, by its index."""
    batches = list(loader.epoch(epoch, done))
    triples = zip(*(torch.cat([getattr(b, name) for b in batches]) for name in ("index", "view", "image")), strict=True)
    return {int(index): (int(view), image) for index, view, image in triples}


def same(part: dict[int, tuple[int, Tensor]], whole: dict[int, tuple[int, Tensor]]) -> bool:
    return all(view == whole[i][0] and torch.equal(image, whole[i][1]) for i, (view, image) in part.items())


def test_views_depend_on_seed_epoch_and_image_alone() -> None:
    data = dataset(40)
    whole = views_of(MemoryLoader(data, 40, CPU, train=True, seed=3), 5)
    for size in (4, 7, 16):
        assert same(views_of(MemoryLoader(data, size, CPU, train=True, seed=3), 5), whole)
        rest = views_of(MemoryLoader(data, size, CPU, train=True, seed=3), 5, done=2)
        assert len(rest) == 40 - 2 * size and same(rest, whole)
    parts = [views_of(MemoryLoader(data, 8, CPU, train=True, seed=3, share=Share(rank, 4)), 5) for rank in range(4)]
    assert sorted(index for part in parts for index in part) == list(range(40))
    assert all(same(part, whole) for part in parts)
    for seed, epoch in ((3, 6), (4, 5)):
        other = views_of(MemoryLoader(data, 40, CPU, train=True, seed=seed), epoch)
        assert sum(other[i][0] != whole[i][0] for i in range(40)) > 30


def test_an_image_keeps_its_views_among_fewer_others() -> None:
    data = dataset(40)
    whole = views_of(MemoryLoader(data, 40, CPU, train=True, seed=3), 5)
    part = data.select(torch.tensor([30, 4, 17]), data.info)
    found = views_of(MemoryLoader(part, 3, CPU, train=True, seed=3), 5)
    assert same({int(part.positions[index]): seen for index, seen in found.items()}, whole)


def test_views_are_uniform() -> None:
    loader = MemoryLoader(dataset(500), 500, CPU, train=True)
    views = torch.stack([loader.views(epoch) for epoch in range(2000)])
    for drawn in (views[:100].flatten(), views[:, 7]):  # over the images, and of one image over the epochs
        counts = drawn.bincount(minlength=50).double()
        expected = len(drawn) / 50
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert len(counts) == 50
        assert chi_square < 49 + 5 * 98**0.5, "five standard deviations above its mean"


def test_the_order_and_the_views_are_the_same_on_every_machine() -> None:
    loader = MemoryLoader(dataset(), 10, CPU, train=True, seed=1)
    batch = next(loader.epoch(2))
    assert batch.index.tolist() == [3, 4, 6, 2, 8, 0, 7, 5, 1, 9]
    assert batch.view.tolist() == [27, 46, 47, 35, 46, 21, 36, 0, 38, 9]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 13, 14, 25])
@pytest.mark.parametrize("size", [6, 12])
def test_the_images_of_a_batch_are_counted(train: bool, processes: int, count: int, size: int) -> None:
    shares = [Batches(count, size, train, Share(rank, processes)) for rank in range(processes)]
    parts = [[len(part) for part in batches.split(torch.arange(count))] for batches in shares]
    for batches, part in zip(shares, parts, strict=True):
        assert len(batches) == len(part) or (len(batches), part) == (0, [0])
        assert batches.images == sum(map(sum, parts))
        for step in range(max(map(len, parts)) + 1):
            assert batches.size_of(step) == sum(other[step] for other in parts if step < len(other))
    images = shares[0].images
    assert images == count or (train and 0 < images < count and count - images < 2 * processes)


def strong_views(loader: hkd.data.Loader, epoch: int, done: int = 0) -> dict[int, Tensor]:
    """The strong view of each image, by its index."""
    return {int(i): image for b in loader.epoch(epoch, done) for i, image in zip(b.index, b.strong, strict=True)}


def alike(part: dict[int, Tensor], whole: dict[int, Tensor]) -> bool:
    return all(torch.equal(image, whole[index]) for index, image in part.items())


def test_strong_views_depend_on_seed_epoch_and_image_alone() -> None:
    data = dataset(40)
    whole = strong_views(MemoryLoader(data, 40, CPU, train=True, seed=3, strong=True), 5)
    for size in (4, 7):
        loader = MemoryLoader(data, size, CPU, train=True, seed=3, strong=True)
        assert alike(strong_views(loader, 5), whole)
        assert len(strong_views(loader, 5, done=2)) == 40 - 2 * size and alike(strong_views(loader, 5, done=2), whole)
    shares = [MemoryLoader(data, 8, CPU, train=True, seed=3, strong=True, share=Share(rank, 4)) for rank in range(4)]
    assert all(alike(strong_views(loader, 5), whole) for loader in shares)
    for seed, epoch in ((3, 6), (4, 5)):
        other = strong_views(MemoryLoader(data, 40, CPU, train=True, seed=seed, strong=True), epoch)
        assert not any(torch.equal(other[i], whole[i]) for i in range(40))
    plain = MemoryLoader(data, 40, CPU, train=True, seed=3)
    with_strong = next(MemoryLoader(data, 40, CPU, train=True, seed=3, strong=True).epoch(5))
    assert torch.equal(next(plain.epoch(5)).image, with_strong.image), "the first view is the same with a second"
    assert all(b.strong is None for b in plain.epoch(5))
    assert all(b.strong is None for b in MemoryLoader(data, 4, CPU, train=False, strong=True).epoch(0))


@pytest.mark.parametrize("flip", [True, False])
def test_a_strong_view_is_a_crop_of_its_own_that_is_augmented(flip: bool) -> None:
    data = dataset(flip=flip)
    batch = next(MemoryLoader(data, 10, CPU, train=True, seed=1, strong=True).epoch(2))
    drawn = augment.strong_draws(1, 2, data.positions)
    for index, made in zip(batch.index, batch.strong, strict=True):
        number = int(drawn[index, 0]) % 50
        crop = all_views(data.images[index], padding=2, flip=True)[number if flip else number - number % 2]
        expected = normalised(augment.strong(crop[None], drawn[index][None])[0], data.info)
        torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)
    assert batch.strong.is_contiguous(memory_format=torch.channels_last)


def test_streamed_strong_views_do_not_depend_on_workers_and_batches(tmp_path: Path) -> None:
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders((120, 100)))}")
    whole = strong_views(make_loader(data, 12, CPU, train=True, seed=3, strong=True), 2)
    assert len(whole) == 12
    loader = make_loader(data, 5, CPU, train=True, seed=3, workers=2, strong=True)
    assert alike(strong_views(loader, 2), whole)
    assert not any(torch.equal(image, whole[i]) for i, image in strong_views(loader, 3).items())
    assert alike(strong_views(loader, 2, done=1), whole)
    plain = next(make_loader(data, 12, CPU, train=True, seed=3).epoch(2))
    both = next(make_loader(data, 12, CPU, train=True, seed=3, strong=True).epoch(2))
    assert plain.strong is None and torch.equal(plain.image, both.image)
