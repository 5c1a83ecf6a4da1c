"""The strong view's operations against Pillow, image by image."""

import math
from collections.abc import Callable

import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from hkd.data import augment
from hkd.data.augment import ONE, OPERATIONS
from hkd.data.images import to_tensor

MAGNITUDES = torch.tensor([0, 1, 4096, 16383, 16384, 30000, 32768, 43690, 65000, 65535])


def images(side: int) -> Tensor:
    """Noise, smooth, dark, of few levels, of one colour: (10, 3, S, S)."""
    draw = torch.Generator().manual_seed(side)
    noise = torch.randint(0, 256, (10, 3, side, side), generator=draw)
    slope = torch.arange(side) * 200 // side
    made = torch.stack([noise[0], slope + noise[1] // 8, noise[2] // 4 + 30, noise[3] // 64 * 64, *noise[4:]])
    made[4] = torch.tensor([10, 20, 30])[:, None, None]
    made[5, 0] = 255
    made[6] = (noise[6] > 250) * 255
    return made.to(torch.uint8)


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def shifted(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def factor(part: float) -> float:
    """In steps of 1 / 65536, as the operations have it."""
    return math.floor((0.05 + 0.9 * part) * ONE + 0.5) / ONE


EXPECTED: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, u: ImageOps.autocontrast(image),
    "brightness": lambda image, u: ImageEnhance.Brightness(image).enhance(factor(u)),
    "colour": lambda image, u: ImageEnhance.Color(image).enhance(factor(u)),
    "contrast": lambda image, u: ImageEnhance.Contrast(image).enhance(factor(u)),
    "equalize": lambda image, u: ImageOps.equalize(image),
    "identity": lambda image, u: image,
    "posterize": lambda image, u: ImageOps.posterize(image, int(4 + 4 * u)),
    "sharpness": lambda image, u: ImageEnhance.Sharpness(image).enhance(factor(u)),
    "solarize": lambda image, u: ImageOps.solarize(image, 256 * u),
    "rotate": lambda image, u: image.rotate(60 * u - 30),
    "shear-x": lambda image, u: shifted(image, 1, 0.6 * u - 0.3, 0, 0, 1, 0),
    "shear-y": lambda image, u: shifted(image, 1, 0, 0, 0.6 * u - 0.3, 1, 0),
    "translate-x": lambda image, u: shifted(image, 1, 0, (0.6 * u - 0.3) * image.width, 0, 1, 0),
    "translate-y": lambda image, u: shifted(image, 1, 0, 0, 0, 1, (0.6 * u - 0.3) * image.width),
}


def as_pillow(batch: Tensor, name: str, magnitudes: Tensor) -> Tensor:
    done = [EXPECTED[name](pillow(image), u / ONE) for image, u in zip(batch, magnitudes.tolist(), strict=True)]
    return torch.stack([to_tensor(image) for image in done])


@pytest.mark.parametrize("side", [8, 32, 33, 96])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str, side: int) -> None:
    batch = images(side)
    for turn in range(len(MAGNITUDES)):
        magnitudes = MAGNITUDES.roll(turn)
        operations = torch.full((10,), OPERATIONS.index(name))
        made = augment.operate(batch, operations, augment.strong_amounts(operations, magnitudes, side))
        difference = (made.int() - as_pillow(batch, name, magnitudes).int()).abs()
        assert made.dtype == torch.uint8 and difference.max() <= (name == "autocontrast")


@pytest.mark.parametrize("side", [8, 32, 33])
def test_the_rectangle_is_pillows(side: int) -> None:
    draw = torch.Generator().manual_seed(1)
    places = torch.randint(0, ONE, (200, 3), generator=draw)
    places[:4] = torch.tensor([[0, 0, 0], [ONE - 1] * 3, [ONE - 1, 0, ONE // 2], [0, ONE - 1, ONE - 1]])
    batch = images(side).repeat(20, 1, 1, 1)
    for image, made, place in zip(batch, augment.rectangle(batch, places), places.tolist(), strict=True):
        v, x, y = place[0] / ONE * 0.5 * side, place[1] / ONE * side, place[2] / ONE * side
        left, top = int(max(0, x - v / 2)), int(max(0, y - v / 2))
        expected = pillow(image)
        ImageDraw.Draw(expected).rectangle((left, top, min(side, left + v), min(side, top + v)), fill=(125, 123, 114))
        assert torch.equal(made, to_tensor(expected))


def test_each_image_has_its_own_draws_in_any_batch() -> None:
    batch = images(16).repeat(30, 1, 1, 1)
    drawn = augment.strong_draws(3, 5, torch.arange(300))
    whole = augment.strong(batch, drawn)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment.strong(batch[order], drawn[order]), whole[order])
    assert all(torch.equal(augment.strong(batch[i : i + 1], drawn[i : i + 1])[0], whole[i]) for i in range(0, 300, 7))
    layout = batch.to(memory_format=torch.channels_last)
    assert torch.equal(augment.strong(layout, drawn), whole)


def test_the_strong_view_is_two_operations_and_a_rectangle() -> None:
    batch, drawn = images(32), augment.strong_draws(0, 0, torch.arange(10))
    for image, row in zip(batch, drawn, strict=True):
        step = image[None]
        for slot in (1, 2):
            amounts = augment.strong_amounts(row[None, slot], row[None, slot + 2], 32)
            step = augment.operate(step, row[None, slot], amounts)
        assert torch.equal(augment.strong(image[None], row[None]), augment.rectangle(step, row[None, 5:]))


def test_draws_are_uniform_and_keyed() -> None:
    drawn = augment.strong_draws(1, 2, torch.arange(50_000))
    pairs = (drawn[:, 1] * 14 + drawn[:, 2]).bincount(minlength=196).double()
    assert len(pairs) == 196
    expected = 50_000 / 196
    assert ((pairs - expected) ** 2 / expected).sum() < 195 + 5 * 390**0.5
    assert (drawn[:, 3:] >= 0).all() and (drawn[:, 3:] < ONE).all()
    torch.testing.assert_close(drawn[:, 3:].double().mean(dim=0), torch.full((5,), 32767.5).double(), rtol=0.02, atol=0)
    correlation = torch.corrcoef(drawn.T.double() / drawn.amax(dim=0, keepdim=True).T)
    assert (correlation - torch.eye(8)).abs().max() < 0.03
    part = torch.tensor([7, 40_000])
    assert torch.equal(augment.strong_draws(1, 2, part), drawn[part])
    for seed, epoch in ((1, 3), (2, 2)):
        assert (augment.strong_draws(seed, epoch, torch.arange(100)) != drawn[:100])[:, 3:].any(dim=1).all()


def test_the_draws_are_the_same_on_every_machine() -> None:
    assert augment.strong_draws(1, 2, torch.tensor([3]))[0, 1:].tolist() == [9, 1, 5219, 41866, 28604, 1907, 31322]
