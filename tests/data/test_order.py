"""Which images an epoch shows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hkd.data import MemoryLoader, make_loader, open_data
from hkd.data.order import EpochOrder
from hkd.data.spec import DataSpec
from hkd.types import Share
from tests.data.test_balance import skewed
from tests.data.test_datasets import class_folders, encoded, picture, write_files

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, -1, 2, 0] * 6 + [-1] * 3)  # 24 with a label, 9 without


def mixed(share: float | None, batch_size: int = 8, labels: Tensor = LABELS, **changes: bool) -> EpochOrder:
    return EpochOrder(labels, 3, batch_size, unlabelled_share=share, **changes)


@pytest.mark.parametrize(
    ("share", "batch_size", "without"),
    [
        (0.25, 8, [2, 2, 2, 2]),  # four times six labelled ones
        (0.5, 8, [4] * 6),
        (0.5, 10, [5, 5, 5, 5, 4]),  # the last batch has the remaining four of both
        (0.001, 8, [1, 1, 1, 0]),  # of seven, seven, seven and three: at least one, but in the last
        (0.999, 8, [7] * 24),  # at least one has a label
    ],
)
def test_every_batch_has_the_share_and_an_epoch_the_labelled_images(
    share: float, batch_size: int, without: list[int]
) -> None:
    order = mixed(share, batch_size)
    shown = order(5)
    assert len(shown) == order.count == 24 + sum(without)
    assert [int((LABELS[batch] < 0).sum()) for batch in shown.split(batch_size)] == without
    known = shown[LABELS[shown] >= 0]
    assert known.sort().values.equal((LABELS >= 0).nonzero().flatten())
    assert torch.equal(shown, mixed(share, batch_size)(5)), "an epoch is the same whenever it is asked for"
    assert not torch.equal(shown, order(6))


def test_unlabelled_images_come_in_turn_from_epoch_to_epoch() -> None:
    order = mixed(0.25)
    row = torch.cat([shown[LABELS[shown] < 0].sort().values for shown in map(order, range(9))])
    assert len(row) == 9 * 8  # eight rounds of the nine
    assert row.bincount(minlength=len(LABELS))[LABELS < 0].tolist() == [8] * 9
    first, second = order(0), order(1)
    missing = set((LABELS < 0).nonzero().flatten().tolist()) - set(first.tolist())
    assert len(missing) == 1 and missing <= set(second.tolist())


def test_without_a_share_every_image_is_shown_once() -> None:
    for order in (mixed(None), mixed(0.5, labels=LABELS.clamp(min=0)), mixed(0.5, labels=torch.full((7,), -1))):
        assert order(2).sort().values.equal(torch.arange(order.count)) and not order.repeats
    one = mixed(0.5, batch_size=1)  # no batch of one image has both
    assert one.count == len(LABELS)


def test_the_labelled_images_may_be_balanced() -> None:
    labels = torch.tensor([0] * 12 + [1] * 4 + [-1] * 5)
    shown = labels[mixed(0.5, labels=labels, balance=True)(1)]
    assert shown[shown >= 0].bincount().tolist() == [8, 8] and int((shown < 0).sum()) == 16


def test_an_image_that_an_epoch_repeats_has_other_views() -> None:
    data = skewed()
    data.labels = torch.where(data.labels == 1, -1, data.labels)  # 3 of 30
    loader = MemoryLoader(data, 8, CPU, train=True, seed=3, unlabelled_share=0.5)
    batches = list(loader.epoch(0))
    assert sum(map(loader.batches.size_of, range(len(loader)))) == 54 == sum(len(batch.index) for batch in batches)
    index, views = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index", "view"))
    assert int((index == 20).sum()) == 9 and len(views[index == 20].unique()) > 6
    rest = MemoryLoader(data, 8, CPU, train=True, seed=3, unlabelled_share=0.5).epoch(0, done=4)
    for first, again in zip(batches[4:], rest, strict=True):
        assert torch.equal(first.image, again.image) and torch.equal(first.label, again.label)
    halves = [
        list(MemoryLoader(data, 8, CPU, train=True, seed=3, unlabelled_share=0.5, share=Share(rank, 2)).epoch(0))
        for rank in (0, 1)
    ]
    for whole, *parts in zip(batches, *halves, strict=True):
        assert torch.cat([part.index for part in parts]).sort().values.equal(whole.index.sort().values)


def test_streamed_images_are_shown_in_the_same_order(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", class_folders((40, 40)))
    more = write_files(tmp_path / "more", {f"{n}.png": encoded(picture((40, 40), n)) for n in range(3)})
    train = open_data(DataSpec(dataset=f"folder:{photos}", image_size=100), unlabelled=str(more)).train
    loader = make_loader(train, 6, CPU, train=True, seed=3, views=5, unlabelled_share=0.5)
    for epoch in (0, 1):
        batches = list(loader.epoch(epoch))
        assert torch.equal(
            torch.cat([batch.index for batch in batches]), EpochOrder(train.labels, 3, 6, unlabelled_share=0.5)(epoch)
        )
        assert all(int((batch.label < 0).sum()) == len(batch.label) // 2 for batch in batches)
