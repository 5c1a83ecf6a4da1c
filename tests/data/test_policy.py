"""The augmentations a run may ask for: their operations, resized crops, and what the loaders make of them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import hkd
from hkd.data import ArrayDataset, DatasetInfo, FileDataset, Loader, augment, make_loader
from hkd.data.augment import ENHANCEMENTS, OPERATIONS
from hkd.data.images import fit, random_crop, random_resized_crop, to_tensor
from hkd.data.policy import POLICIES, Augmentation, altered, policy_amounts, view_keys
from hkd.data.randomness import draws
from hkd.data.resized_crop import drawn_boxes, resized
from hkd.types import Share
from tests.data.test_augment import as_pillow, images, pillow
from tests.data.test_datasets import encoded, picture, write_files
from tests.reference import augmentation as reference

CPU = torch.device("cpu")
TORCHVISION = {
    "brightness": "Brightness", "colour": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "rotate": "Rotate", "shear-x": "ShearX", "shear-y": "ShearY",
    "translate-x": "TranslateX", "translate-y": "TranslateY", "autocontrast": "AutoContrast", "equalize": "Equalize",
    "identity": "Identity",
}  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("policy", POLICIES)
def test_ranges_are_torchvisions(policy: str, sign: int) -> None:
    side, bins = 48, torch.arange(31)
    space = v2.TrivialAugmentWide() if policy == "trivial" else v2.RandAugment()
    assert set(space._AUGMENTATION_SPACE) == set(TORCHVISION.values()) and set(TORCHVISION) == set(OPERATIONS)
    for name in OPERATIONS:
        magnitudes, signed = space._AUGMENTATION_SPACE[TORCHVISION[name]]
        theirs = magnitudes(31, side, side)
        if theirs is None:  # it has no magnitude
            continue
        theirs = theirs.double() * (sign if signed else 1)
        if name in ENHANCEMENTS:
            theirs = 1 + theirs
        elif name.startswith("translate"):
            theirs = (theirs + sign * 1e-4).trunc()  # which has float32 noise
        elif name == "solarize":
            theirs = (255 * theirs - 1e-3).ceil()  # a part of 255 there; x < t is x < ceil(t) for whole x
        ours = policy_amounts(policy, torch.full((31,), OPERATIONS.index(name)), bins, torch.full((31,), sign), side)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ENHANCEMENTS)
def test_enhancements_beyond_the_image_are_pillows(name: str) -> None:
    batch = images(32)
    for kept in (0.01, 0.7, 1.0, 1.3, 1.99):
        factor = round(kept * augment.ONE)
        made = augment.operate(
            batch, torch.full((10,), OPERATIONS.index(name)), torch.full((10,), kept, dtype=torch.float64)
        )
        # as_pillow has .05 + .9 u in steps of 1 / 65536
        part = (factor / augment.ONE - 0.05) / 0.9
        expected = as_pillow(batch, name, torch.full((10,), part * augment.ONE, dtype=torch.float64))
        assert torch.equal(made, expected), kept


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_policy_does_depends_on_the_key_alone(policy: str) -> None:
    batch, keys = images(16).repeat(20, 1, 1, 1), view_keys(torch.arange(200), torch.arange(200) % 7)
    whole = altered(batch, policy, keys)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(altered(batch[order], policy, keys[order]), whole[order])
    assert all(torch.equal(altered(batch[i : i + 1], policy, keys[i : i + 1])[0], whole[i]) for i in range(0, 200, 9))
    other = altered(batch, policy, view_keys(torch.arange(200), torch.arange(200) % 7 + 1))
    assert sum(not torch.equal(a, b) for a, b in zip(whole, other, strict=True)) > 120


def test_trivial_is_one_operation_and_randaugment_two_of_fixed_magnitude() -> None:
    batch, keys = images(32), view_keys(torch.arange(10), torch.tensor([3] * 10))
    for image, key, one, two in zip(
        batch, keys, altered(batch, "trivial", keys), altered(batch, "randaugment", keys), strict=True
    ):
        drawn = int(draws("trivial", key[None])[0])
        number, magnitude, sign = drawn % 14, drawn // 14 % 31, 1 - 2 * (drawn // 434 % 2)
        row = (torch.tensor([value]) for value in (number, magnitude, sign))
        number_, *rest = row
        step = augment.operate(image[None], number_, policy_amounts("trivial", number_, *rest, 32))
        assert torch.equal(step[0], one)
        drawn = int(draws("randaugment", key[None])[0])
        step = image[None]
        for number, sign in ((drawn % 14, drawn // 196 % 2), (drawn // 14 % 14, drawn // 392 % 2)):
            operation = torch.tensor([number])
            amounts = policy_amounts("randaugment", operation, torch.tensor([9]), torch.tensor([1 - 2 * sign]), 32)
            step = augment.operate(step, operation, amounts)
        assert torch.equal(step[0], two)


def test_the_draws_of_trivial_are_uniform() -> None:
    drawn = draws("trivial", view_keys(torch.arange(40_000), torch.zeros(40_000, dtype=torch.int64)))
    counts = torch.from_numpy((drawn % np.uint64(14 * 31 * 2)).astype(np.int64)).bincount(minlength=868).double()
    expected = 40_000 / 868
    assert ((counts - expected) ** 2 / expected).sum() < 867 + 5 * (2 * 867) ** 0.5


# -- resized crops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smallest", [0.08, 0.5, 1.0])
@pytest.mark.parametrize("side", [8, 32, 97])
def test_boxes_are_those_of_the_loop(side: int, smallest: float) -> None:
    keys = view_keys(torch.arange(300) * 7, torch.arange(300))
    boxes = drawn_boxes(keys, side, smallest)
    assert boxes.tolist() == [reference.box(int(key), side, smallest) for key in keys]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= side).all()


def test_boxes_are_of_the_distribution() -> None:
    boxes = drawn_boxes(torch.arange(20_000), 1000, 0.08).double()
    area, aspect = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert area.min() > 0.079 and area.max() <= 1 and aspect.min() > 0.748 and aspect.max() < 1.336
    small = area[area < 0.5]  # of which every aspect fits
    assert abs(float(small.mean()) - 0.29) < 0.004
    assert abs(float(aspect.log().mean())) < 0.005


@pytest.mark.parametrize("side", [8, 32, 33])
def test_a_resized_crop_is_pillows(side: int) -> None:
    batch = images(side).repeat(12, 1, 1, 1)
    boxes = drawn_boxes(torch.arange(120), side, 0.02)
    boxes[0] = torch.tensor([0, 0, side, side])
    boxes[1] = torch.tensor([side - 1, 0, 1, side])
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    made = resized(batch.permute(0, 2, 3, 1).contiguous(), order, boxes)
    for row, (top, left, height, width), pixels in zip(order, boxes.tolist(), made, strict=True):
        part = pillow(batch[row]).crop((left, top, left + width, top + height))
        assert torch.equal(pixels.permute(2, 0, 1), to_tensor(part.resize((side, side), Image.Resampling.BILINEAR)))


# -- the loaders -------------------------------------------------------------------------------------------------------


def noise(count: int = 20, size: int = 16, flip: bool = True) -> ArrayDataset:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw)
    info = DatasetInfo("noise", ("a", "b"), mean=(0.0,) * 3, std=(1 / 255,) * 3, flip=flip)
    return ArrayDataset(pixels, torch.arange(count) % 2, info)


def photos(root: Path, size: tuple[int, int] = (60, 50)) -> FileDataset:
    files = {
        f"{split}/{name}/{n}.jpg": encoded(picture(size, 10 * k + n), "JPEG")
        for split in ("train", "val") for k, name in enumerate(("cat", "dog")) for n in range(5)
    }  # fmt: skip
    found = hkd.load_dataset(f"folder:{write_files(root, files)}", image_size=24)
    found.info = DatasetInfo("photos", found.info.classes, mean=(0.0,) * 3, std=(1 / 255,) * 3, image_size=24)
    assert isinstance(found, FileDataset)
    return found


def shown(loader: Loader, epoch: int, done: int = 0) -> dict[int, Tensor]:
    """What an epoch shows of each image, by its index, as bytes: mean 0 and deviation 1 / 255 keep the pixels."""
    batches = list(loader.epoch(epoch, done))
    return {int(i): x.round().to(torch.uint8) for b in batches for i, x in zip(b.index, b.image, strict=True)}


def alike(part: dict[int, Tensor], whole: dict[int, Tensor]) -> bool:
    return bool(part) and all(torch.equal(image, whole[index]) for index, image in part.items())


ASKED = [
    {"augment": "resized-crop"}, {"min_crop": 0.4}, {"augment": "trivial"}, {"augment": "randaugment"},
    {"augment": "trivial", "min_crop": 0.3}, {"augment": "crop"}, {},
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_views_depend_on_the_image_and_their_number_alone(asked: dict) -> None:
    data = noise()
    whole = make_loader(data, 20, CPU, train=True, seed=3, views=6, **asked)
    first = shown(whole, 2)
    assert len(first) == 20
    parts = [make_loader(data, size, CPU, train=True, seed=3, views=6, **asked) for size in (3, 7)]
    parts += [make_loader(data, 8, CPU, train=True, seed=3, views=6, share=Share(rank, 2), **asked) for rank in (0, 1)]
    assert all(alike(shown(loader, 2), first) for loader in parts)
    assert len(shown(parts[0], 2, done=3)) == 11 and alike(shown(parts[0], 2, done=3), first)
    few = data.select(torch.tensor([11, 4, 17]), data.info)
    found = shown(make_loader(few, 3, CPU, train=True, seed=3, views=6, **asked), 2)
    assert alike({int(few.positions[index]): image for index, image in found.items()}, first)
    assert sum(torch.equal(image, first[index]) for index, image in shown(whole, 3).items()) < 6
    batch = next(whole.epoch(4))
    assert torch.equal(whole.images(batch.index, batch.view), batch.image)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    if asked not in ({}, {"augment": "crop"}):
        assert whole.view_count == 6 and whole.used_views().tolist() == list(range(6))
        again = make_loader(data, 20, CPU, train=True, seed=9, views=6, **asked)
        assert torch.equal(again.images(batch.index, batch.view), batch.image), "in every run"
        views = torch.stack([whole.views(epoch) for epoch in range(-2, 4)])
        assert all(sorted(column.tolist()) == list(range(6)) for column in views.T), "each in its turn"


def test_a_resized_crop_in_memory_is_its_box_of_the_image() -> None:
    data = noise(flip=False)
    loader = make_loader(data, 20, CPU, train=True, seed=3, views=6, min_crop=0.3)
    batch = next(loader.epoch(1))
    assert batch.view is not None
    keys = view_keys(data.positions[batch.index], batch.view)
    for image, index, key in zip(batch.image, batch.index, keys, strict=True):
        top, left, height, width = reference.box(reference.bits("crop", int(key)) >> 1, 16, 0.3)
        part = pillow(data.images[index]).crop((left, top, left + width, top + height))
        assert torch.equal(image.round().byte(), to_tensor(part.resize((16, 16), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_what_was_cropped(policy: str) -> None:
    data = noise()
    plain, made = (
        make_loader(data, 20, CPU, train=True, seed=3, views=6, augment=kind, min_crop=0.3)
        for kind in ("resized-crop", policy)
    )
    before, after = next(plain.epoch(1)), next(made.epoch(1))
    keys = view_keys(data.positions[before.index], before.view)
    assert torch.equal(after.image.round().byte(), altered(before.image.round().byte(), policy, keys))
    evaluated = make_loader(data, 20, CPU, train=False, augment=policy, min_crop=0.3)
    assert torch.equal(next(evaluated.epoch(0)).image.round().byte(), data.images)


def test_mirroring_is_half_of_the_views_or_none() -> None:
    mirrored = 0
    for flip in (True, False):
        data = noise(200, flip=flip)
        batch = next(make_loader(data, 200, CPU, train=True, views=6, min_crop=1.0).epoch(0))
        whole = data.images[batch.index]
        same, other = ((batch.image.round().byte() == x).flatten(1).all(dim=1) for x in (whole, whole.flip(3)))
        assert (same | other).all(), "a crop of all of a square is the image"
        mirrored = int(other.sum())
        assert 70 < mirrored < 130 if flip else not mirrored


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_streamed_views_do_not_depend_on_workers_and_batches(tmp_path: Path, asked: dict) -> None:
    data = photos(tmp_path)
    whole = shown(make_loader(data, 10, CPU, train=True, seed=3, views=6, **asked), 2)
    assert len(whole) == 10
    loader = make_loader(data, 4, CPU, train=True, seed=3, views=6, workers=2, **asked)
    assert alike(shown(loader, 2), whole) and alike(shown(loader, 2, done=1), whole)
    assert not any(torch.equal(image, whole[index]) for index, image in shown(loader, 3).items())
    batch = next(loader.epoch(1))
    assert torch.equal(loader.images(batch.index, batch.view), batch.image)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_streamed_view_is_its_crop_under_its_operations(tmp_path: Path, asked: dict) -> None:
    data = photos(tmp_path)
    batch = next(make_loader(data, 10, CPU, train=True, seed=3, views=6, **asked).epoch(2))
    for image, index, view in zip(batch.image, batch.index, batch.view, strict=True):
        draw = random.Random(f"view {int(data.positions[index])} {int(view)}")
        pixels = np.asarray(data.decode(int(index), 48))
        if asked.get("augment") == "crop":
            made = random_crop(pixels, 24, draw)
        else:
            made = random_resized_crop(pixels, 24, draw, asked.get("min_crop", 0.08))
        made = to_tensor(made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else made)
        if asked.get("augment") in POLICIES:
            made = altered(made[None], asked["augment"], view_keys(data.positions[index][None], view[None]))[0]
        assert torch.equal(image.round().byte(), made)


def test_a_streamed_crop_is_of_the_padded_image() -> None:
    pixels = np.asarray(picture((40, 32), 1))
    padded = torch.nn.functional.pad(to_tensor(fit(Image.fromarray(pixels), 24)), (3,) * 4)
    seen = set()
    for seed in range(400):
        made = to_tensor(random_crop(pixels, 24, random.Random(seed)))
        places = [
            (top, left) for top in range(7) for left in range(7)
            if torch.equal(made, padded[:, top : top + 24, left : left + 24])
        ]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 49


def test_a_stream_sees_no_less_than_it_is_asked_to() -> None:
    pixels = np.arange(100 * 100 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 100, 3)
    sizes = []
    crop = Image.fromarray

    class Watch:
        def __call__(self, part: np.ndarray) -> Image.Image:
            sizes.append(part.shape[0] * part.shape[1] / 1e4)
            return crop(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "fromarray", Watch())
        for seed in range(200):
            random_resized_crop(pixels, 8, random.Random(seed), 0.6)
    assert 0.59 < min(sizes) < 0.62 and max(sizes) > 0.95


def test_names_of_augmentations_differ_where_pixels_do() -> None:
    names = [
        Augmentation(kind, least).name(in_memory=in_memory, flip=flip)
        for kind in (None, "crop", "resized-crop", *POLICIES)
        for least in (None, 0.08, 0.25)
        for in_memory in (True, False)
        for flip in (True, False)
        if not (kind == "crop" and least)
    ]
    assert Augmentation().name(in_memory=True, flip=False) == "crop"
    assert Augmentation().name(in_memory=False, flip=True) == "resized-crop"
    assert set(names) == {
        "crop", "crop, unflipped", "resized-crop", "resized-crop, unflipped", "resized-crop 0.25",
        "resized-crop 0.25, unflipped",
        *(
            f"{policy} of {crop}{end}"
            for policy in POLICIES
            for crop in ("crop", "resized-crop", "resized-crop 0.25")
            for end in ("", ", unflipped")
        ),
    }  # fmt: skip


def test_tables_of_mirrored_and_other_views_differ(tmp_path: Path) -> None:
    data = photos(tmp_path)
    loaders = [make_loader(data, 4, CPU, train=True, flip=flip) for flip in (True, False)]
    assert [loader.augmentation for loader in loaders] == ["resized-crop", "resized-crop, unflipped"]
    plain = [make_loader(noise(flip=flip), 4, CPU, train=True) for flip in (True, False)]
    assert [(loader.augmentation, loader.padding) for loader in plain] == [("crop", 2)] * 2, "their numbers differ"


@pytest.mark.parametrize("stream", [True, False])
def test_an_image_that_a_balanced_epoch_shows_again_has_the_next_view(tmp_path: Path, stream: bool) -> None:
    data = photos(tmp_path) if stream else noise(10)
    data.labels = (torch.arange(10) > 1).long()
    loader = make_loader(data, 10, CPU, train=True, seed=3, views=6, augment="trivial", min_crop=0.3, balance=True)
    batch = next(loader.epoch(2))
    rare = [sorted(view for i, view in zip(batch.index, batch.view.tolist(), strict=True) if i == n) for n in (0, 1)]
    assert sum(map(len, rare)) == 5 and all(len(set(views)) == len(views) for views in rare)
    assert all((views[-1] - views[0] < len(views)) or {0, 5} <= set(views) for views in rare), "one after the other"
    assert torch.equal(loader.images(batch.index, batch.view), batch.image)
