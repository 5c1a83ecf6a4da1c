"""Mixed images: how they are mixed, what of them is known, and that nothing but keys decides it."""

import random
from pathlib import Path

import pytest
import torch

from hkd.data import make_loader
from hkd.data.mixing import MixedLoader, box
from hkd.types import Batch, Share
from tests.data.test_policy import CPU, noise, photos
from tests.reference import augmentation as reference

ASKED = [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]


def batches(asked: dict, epoch: int, done: int = 0, size: int = 6, **options: object) -> list[Batch]:
    loader = make_loader(noise(), size, CPU, train=True, seed=3, **options, **asked)
    assert isinstance(loader, MixedLoader)
    return list(loader.epoch(epoch, done))


def plain(epoch: int, size: int = 6, **options: object) -> list[Batch]:
    return list(make_loader(noise(), size, CPU, train=True, seed=3, **options).epoch(epoch))


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_images_are_mixed_as_published_and_the_larger_part_comes_first(asked: dict) -> None:
    """Where λ < 1/2, the mixed image at a place is the published one at its partner's."""
    orders = set()
    for epoch in range(12):
        for step, (made, before) in enumerate(zip(batches(asked, epoch), plain(epoch), strict=True)):
            draw = random.Random(f"mix 3 {epoch} {step}")
            expected, own = reference.mixed(before.image, draw, asked.get("mixup", 0), asked.get("cutmix", 0))
            if own < 0.5:
                expected = expected.flip(0)
            torch.testing.assert_close(made.image.double(), expected, rtol=1e-5, atol=1e-4)
            assert made.mixture is not None and made.mixture.weight.ndim == 0
            assert float(made.mixture.weight) == pytest.approx(min(own, 1 - own), abs=1e-6)
            assert torch.equal(made.label, before.label) and torch.equal(made.index, before.index)
            assert torch.equal(made.mixture.label, before.label.flip(0))
            assert made.image.is_contiguous(memory_format=torch.channels_last)
            orders.add(own < 0.5)
    assert orders == {True, False}


def test_the_place_of_a_box_is_uniform_and_its_area_what_was_drawn() -> None:
    draw = random.Random(0)
    found = [box(0.25, 32, 48, draw) for _ in range(4000)]
    for top, bottom, left, right in found:
        assert 0 <= top < bottom <= 32 and 0 <= left < right <= 48
        assert bottom - top <= 16 and right - left <= 24
    inner = [f for f in found if f[1] - f[0] == 16 and f[3] - f[2] == 24]
    assert abs(len(inner) / 4000 - (17 / 32) * (25 / 48)) < 0.03, "those that the border does not cut"


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_parts_are_of_a_beta_distribution(alpha: float) -> None:
    loader = MixedLoader(make_loader(noise(2), 2, CPU, train=True), alpha, 0.0, 0)
    batch = plain(0)[0]
    found = torch.tensor(
        [float(loader._mixed(batch, random.Random(f"mix 0 0 {n}")).mixture.weight) for n in range(4000)]  # type: ignore[union-attr]
    )
    drawn = torch.distributions.Beta(alpha, alpha).sample((200_000,))
    expected = torch.minimum(drawn, 1 - drawn)
    assert abs(float(found.mean() - expected.mean())) < 0.01
    assert abs(float((found < 0.05).float().mean() - (expected < 0.05).float().mean())) < 0.03


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_mixing_depends_on_seed_epoch_and_step_alone(asked: dict) -> None:
    whole = batches(asked, 4)
    rest = batches(asked, 4, done=2)
    assert len(whole) == 4 and len(rest) == 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.image, b.image)
        assert a.mixture is not None and b.mixture is not None and torch.equal(a.mixture.weight, b.mixture.weight)
    weights = {float(b.mixture.weight) for epoch in (4, 5) for b in batches(asked, epoch)}  # type: ignore[union-attr]
    assert len(weights) > 5
    for rank in (0, 1):
        for part, all_of_it in zip(
            batches(asked, 4, size=10, share=Share(rank, 2)), batches(asked, 4, size=10), strict=True
        ):
            assert torch.equal(part.index, Share(rank, 2).of(all_of_it.index))
            assert torch.equal(part.mixture.weight, all_of_it.mixture.weight)  # type: ignore[union-attr]


def test_mixed_images_have_no_view_and_evaluation_none_of_it() -> None:
    loader = make_loader(noise(), 6, CPU, train=True, mixup=0.2)
    assert all(b.view is None and b.place is None for b in loader.epoch(0))
    assert "in every epoch" in loader.unrepeated and not make_loader(noise(), 6, CPU, train=True).unrepeated
    assert all(b.mixture is None for b in make_loader(noise(), 6, CPU, train=False, mixup=0.2, cutmix=1.0).epoch(0))


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_streams_are_mixed_alike_whatever_the_workers(tmp_path: Path, asked: dict) -> None:
    data = photos(tmp_path)
    runs = [
        list(make_loader(data, 4, CPU, train=True, seed=3, workers=workers, augment="trivial", **asked).epoch(2))
        for workers in (0, 2)
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a.image, b.image) and a.image.shape[1:] == (3, 24, 24)
        assert a.mixture is not None and b.mixture is not None
        assert torch.equal(a.mixture.label, b.mixture.label) and torch.equal(a.mixture.weight, b.mixture.weight)
