"""The loaders against plain per-image re-statements."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hkd
from hkd.data import ArrayDataset, DatasetInfo, make_loader
from hkd.data.memory_loader import MemoryLoader
from hkd.data.stream_loader import StreamLoader
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
    mean, std = torch.tensor(info.mean).view(3, 1, 1), torch.tensor(info.std).view(3, 1, 1)
    return (image.double() / 255 - mean) / std


def all_views(image: Tensor, padding: int, flip: bool) -> list[Tensor]:
    """Every crop that the augmentation may choose, one by one."""
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
            for image, label, index in zip(batch.image, batch.label, batch.index, strict=True):
                views = all_views(data.images[index], padding=2, flip=flip)
                matches = [
                    n
                    for n, view in enumerate(views)
                    if torch.allclose(normalised(view, data.info), image.double(), atol=1e-5)
                ]
                assert len(matches) == 1
                assert label == data.labels[index]
                seen.add(matches[0])
    assert len(seen) == (50 if flip else 25), "all offsets and both directions occur, image by image"


def test_evaluation_images_come_as_they_are_in_order() -> None:
    data = dataset()
    batches = list(MemoryLoader(data, 4, CPU, train=False).epoch(0))
    assert [len(b.label) for b in batches] == [4, 4, 2]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(10))
    expected = torch.stack([normalised(image, data.info) for image in data.images])
    torch.testing.assert_close(torch.cat([b.image for b in batches]).double(), expected, rtol=1e-5, atol=1e-5)
    assert batches[0].image.is_contiguous(memory_format=torch.channels_last)


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
def test_a_single_image_is_not_left_to_learn_from(tmp_path: Path, stream: bool) -> None:
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
        told = (
            r"^dataset: cannot read \S+/train/cat/1.png \(not an image\); mend or remove it, or .* --bad-images skip$"
        )
        with pytest.raises(hkd.RequestError, match=told):
            list(make_loader(data, 4, CPU, train=True, workers=workers).epoch(0))


def test_a_last_batch_is_what_is_left() -> None:
    loader = MemoryLoader(dataset(), 4, CPU, train=True)
    assert len(loader) == 3
    assert [len(b.label) for b in loader.epoch(0)] == [4, 4, 2]
