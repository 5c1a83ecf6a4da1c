"""Photographs: shrunken while they are decoded, kept on disk as pixels, and the same views from either."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import hkd
from hkd.data import FileDataset, make_loader
from hkd.data.image_copy import ImageCopy, expected_bytes, open_copy, slot_bytes
from hkd.data.images import open_image, shrunken, to_rgb
from tests.data.test_datasets import encoded, picture, write_files

CPU = torch.device("cpu")
SIZE, SIDE = 24, 48
"""Of what the network sees, and the shorter side of a shrunken image."""


def smooth(size: tuple[int, int], seed: int) -> Image.Image:
    return picture((9, 7), seed).resize(size, Image.Resampling.BICUBIC)


def rotated(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG that is shown turned by 90 degrees."""
    image, buffer = smooth(size, seed), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def photographs() -> dict[str, bytes]:
    """12 images: large and small, of all kinds."""
    files = {}
    for n, kind in enumerate(("cat", "dog")):
        files |= {
            f"train/{kind}/0.jpg": encoded(smooth((600, 400), 10 * n), "JPEG"),
            f"train/{kind}/1.jpg": rotated((640, 400), 10 * n + 1),
            f"train/{kind}/2.png": encoded(smooth((300, 210), 10 * n + 2)),
            f"train/{kind}/3.webp": encoded(smooth((200, 230), 10 * n + 3), "WEBP"),
            f"train/{kind}/4.jpg": encoded(smooth((30, 20), 10 * n + 4), "JPEG"),
            f"train/{kind}/5.jpg": encoded(smooth((110, 101), 10 * n + 5).convert("CMYK"), "JPEG"),
            f"val/{kind}/0.jpg": encoded(smooth((60, 50), 10 * n + 6), "JPEG"),
        }
    return files


def opened(root: Path, files: dict[str, bytes] | None = None) -> FileDataset:
    data = hkd.load_dataset(f"folder:{write_files(root / 'photos', files or photographs())}")
    assert isinstance(data, FileDataset)
    return data


def loader(data: FileDataset, cache: Path | None = None, **options: Any) -> Any:
    from hkd.data.stream_loader import StreamLoader

    return StreamLoader(data, 4, CPU, image_size=SIZE, train=True, views=5, cache=cache, **options)


def views(made: Any, epochs: range = range(3), done: int = 0) -> dict[tuple[int, int], Tensor]:
    """Pixels by epoch and index."""
    return {
        (epoch, int(index)): image
        for epoch in epochs
        for batch in made.epoch(epoch, done if epoch == epochs[0] else 0)
        for index, image in zip(batch.index, batch.image, strict=True)
    }


def same(some: dict[tuple[int, int], Tensor], reference: dict[tuple[int, int], Tensor]) -> bool:
    return bool(some) and all(torch.equal(image, reference[key]) for key, image in some.items())


def files_of(cache: Path) -> Path:
    (folder,) = (cache / "photographs").iterdir()
    return folder


# -- shrinking --------------------------------------------------------------------------------------------------------


def plainly_shrunken(image: Image.Image, side: int) -> Image.Image:
    """From the whole picture, decoded in full."""
    scale = side / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [(600, 400), (400, 640), (97, 96), (384, 2000)])
def test_a_jpeg_decoded_at_reduced_scale_is_close_to_the_whole_one(size: tuple[int, int]) -> None:
    data = encoded(smooth(size, 1), "JPEG")
    reduced, whole = shrunken(open_image(data), SIDE), plainly_shrunken(to_rgb(open_image(data)), SIDE)
    assert min(reduced.size) == SIDE and abs(max(reduced.size) - max(whole.size)) <= 1  # libjpeg rounds up
    whole = whole.resize(reduced.size)
    difference = np.abs(np.asarray(reduced, float) - np.asarray(whole, float))
    assert difference.mean() < 5 and difference.max() < 40


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_other_formats_are_decoded_in_full_and_shrunken(format: str) -> None:
    data = encoded(smooth((200, 130), 1), format)
    assert shrunken(open_image(data), SIDE).tobytes() == plainly_shrunken(to_rgb(open_image(data)), SIDE).tobytes()


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (47, 300), (30, 20), (1, 5000)])
def test_small_images_stay_as_they_are(size: tuple[int, int]) -> None:
    for format in ("PNG", "JPEG"):
        data = encoded(picture(size, 1), format)
        assert shrunken(open_image(data), SIDE).tobytes() == to_rgb(open_image(data)).tobytes()


def test_a_turned_jpeg_is_turned_after_it_was_reduced() -> None:
    image = shrunken(open_image(rotated((640, 400), 1)), SIDE)
    assert image.size == (48, 77)
    upright = plainly_shrunken(to_rgb(open_image(rotated((640, 400), 1))), SIDE)
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 3


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_of_other_colours_are_reduced_too(mode: str) -> None:
    data = encoded(smooth((600, 400), 1).convert(mode), "JPEG")
    reduced, whole = shrunken(open_image(data), SIDE), plainly_shrunken(to_rgb(open_image(data)), SIDE)
    assert reduced.mode == "RGB" and reduced.size == whole.size
    assert np.abs(np.asarray(reduced, float) - np.asarray(whole, float)).mean() < 3


def test_sixteen_bits_are_scaled_before_they_are_shrunken() -> None:
    grey = np.linspace(0, 65535, 128 * 128).reshape(128, 128).astype(np.uint16)
    image = shrunken(open_image(encoded(Image.fromarray(grey))), SIDE)
    assert image.size == (48, 48) and 120 < np.asarray(image).mean() < 135


def test_evaluation_decodes_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(tmp_path)
    monkeypatch.setattr(Image.Image, "draft", None)
    made = make_loader(data, 12, CPU, train=False, cache=tmp_path / "cache")
    assert next(made.epoch(0)).image.shape == (12, 3, 224, 224)
    assert not (tmp_path / "cache").exists()


# -- the copy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_views_are_the_same_with_and_without_a_copy(tmp_path: Path, workers: int) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    decoded = views(loader(data))
    first = loader(data, cache, workers=workers)
    assert "image copy: 0 of 12 images known in " in first.note
    assert same(views(first), decoded)
    second = loader(data, cache, workers=workers)
    assert "image copy: 12 of 12 images known in " in second.note
    assert same(views(second), decoded)
    assert same(views(loader(data, cache, workers=workers), range(1, 3), done=2), decoded), "resumed within an epoch"


def test_later_epochs_and_runs_decode_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    made = loader(data, cache)
    first = views(made, range(1))
    monkeypatch.setattr(FileDataset, "decode", None)
    assert len(views(made, range(1, 3))) == 24
    assert same(views(loader(data, cache), range(1)), first)


def test_parts_of_a_data_set_share_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    views(loader(data, cache), range(1))
    part = data.select(torch.tensor([9, 2, 5]), data.info)
    monkeypatch.setattr(FileDataset, "decode", None)
    made = loader(part, cache)
    assert "3 of 3 images known" in made.note and len(views(made, range(1))) == 3


def test_an_archive_has_a_copy_as_a_folder_has(tmp_path: Path) -> None:
    from tests.data.test_datasets import zipped

    data = hkd.load_dataset(f"folder:{zipped(tmp_path / 'photos.zip', photographs(), 'top/')}")
    assert isinstance(data, FileDataset)
    decoded = views(loader(data))
    for _ in range(2):
        assert same(views(loader(data, tmp_path / "cache", workers=1)), decoded)


FILLER = """
import sys
from pathlib import Path
import hkd
from tests.data.test_image_copy import loader, views
views(loader(hkd.load_dataset(f"folder:{sys.argv[1]}/photos"), Path(sys.argv[1]) / "cache"))
"""


def test_two_processes_fill_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, root = opened(tmp_path), Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FILLER, str(tmp_path)]
    started = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    decoded = views(loader(data))
    monkeypatch.setattr(FileDataset, "decode", None)
    assert same(views(loader(data, tmp_path / "cache")), decoded)


@pytest.mark.parametrize("name", ["rows.bin", "marks.bin"])
def test_a_flipped_byte_is_decoded_again(tmp_path: Path, name: str) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    decoded = views(loader(data, cache))
    file = files_of(cache) / name
    content = np.fromfile(file, np.uint8)
    size, place = (slot_bytes(SIDE), 1000) if name == "rows.bin" else (4, 1)
    for file_name in data.names:
        content[data.files.names.index(file_name) * size + place] ^= 4
    content.tofile(file)
    damaged = loader(data, cache)
    copy = damaged._views.copy
    unknown = [n for n in data.names if copy.read(n) is None]
    assert len(unknown) == 12
    assert same(views(damaged), decoded)
    assert all(copy.read(n) is not None for n in data.names), "written again"


def test_a_slot_that_was_cut_short_or_moved_is_unknown(tmp_path: Path) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    decoded = views(loader(data, cache))
    size = slot_bytes(SIDE)
    rows, marks = np.fromfile(files_of(cache) / "rows.bin", np.uint8), np.fromfile(files_of(cache) / "marks.bin", "u4")
    a, b = (data.files.names.index(data.names[n]) for n in (0, 6))
    rows.reshape(-1, size)[[a, b]] = rows.reshape(-1, size)[[b, a]]
    marks[[a, b]] = marks[[b, a]]
    torn = data.files.names.index(data.names[2])
    rows.reshape(-1, size)[torn, 2000:] = 0
    huge = data.files.names.index(data.names[3])
    rows.reshape(-1, size)[huge, :8] = 255
    rows.tofile(files_of(cache) / "rows.bin")
    marks.tofile(files_of(cache) / "marks.bin")
    damaged = loader(data, cache)
    assert [n for n, name in enumerate(data.names) if damaged._views.copy.read(name) is None] == [0, 2, 3, 6]
    assert same(views(damaged), decoded)


def test_other_files_have_another_copy(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = views(loader(opened(tmp_path), cache), range(1))
    name = "train/cat/0.jpg"
    data = opened(tmp_path, photographs() | {name: encoded(smooth((600, 400), 99), "JPEG")})
    os.utime(tmp_path / "photos" / name, (1, 1))
    data = hkd.load_dataset(f"folder:{tmp_path / 'photos'}")
    assert isinstance(data, FileDataset)
    after = views(loader(data, cache), range(1))
    assert not torch.equal(after[0, 0], before[0, 0]) and torch.equal(after[0, 1], before[0, 1])
    assert len(list((cache / "photographs").iterdir())) == 2
    assert len({ImageCopy(cache, data.files, side, 1.0).slots.path for side in (48, 64)}) == 2


def test_a_full_disk_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    data = opened(tmp_path)
    decoded = views(loader(data))
    monkeypatch.setattr(os, "pwrite", full)
    for workers in (0, 1):
        assert same(views(loader(data, tmp_path / "cache", workers=workers)), decoded)
        error = capfd.readouterr().err
        assert error.count("warning: ") == 1 and "No space left on device); the rest is decoded each time" in error


def test_a_copy_keeps_to_its_size(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    decoded = views(loader(data))
    expected = expected_bytes(data, SIDE)
    assert "none, it would take about 0.00 GB, and --image-cache-gb is 1e-06" in loader(data, cache, cache_gb=1e-6).note
    assert loader(data, cache, cache_gb=0).note == "" and not cache.exists()
    whole = loader(data, cache)
    views(whole)
    assert whole._views.copy.slots.bytes <= expected + 8192
    monkeypatch.setattr("hkd.data.image_copy.expected_bytes", lambda *_: 0)
    small = loader(data, tmp_path / "small", cache_gb=60e-6)
    assert same(views(small), decoded)
    assert small._views.copy.slots.bytes <= 60_000
    assert "has the 6e-05 GB of --image-cache-gb" in capfd.readouterr().err


def test_what_cannot_be_opened_is_said_and_not_needed(tmp_path: Path) -> None:
    data = opened(tmp_path)
    (tmp_path / "file").write_text("")
    made = loader(data, tmp_path / "file")
    assert made.note.startswith("image copy: none, it cannot be opened (") and same(views(made), views(loader(data)))
    views(loader(data, tmp_path / "cache"), range(1))
    rows = files_of(tmp_path / "cache") / "rows.bin"
    rows.rename(tmp_path / "elsewhere.bin")
    rows.symlink_to(tmp_path / "elsewhere.bin")
    assert "none, it cannot be opened (" in loader(data, tmp_path / "cache").note


def test_an_image_of_unusual_shape_is_decoded_each_time(tmp_path: Path) -> None:
    long = {"train/cat/6.jpg": encoded(smooth((900, 200), 7), "JPEG"), "train/dog/6.png": encoded(smooth((20, 900), 8))}
    data, cache = opened(tmp_path, photographs() | long), tmp_path / "cache"
    decoded = views(loader(data))
    made = loader(data, cache)
    assert same(views(made), decoded) and same(views(loader(data, cache)), decoded)
    unknown = {name for name in data.names if made._views.copy.read(name) is None}
    assert unknown == {"train/cat/6.jpg", "train/dog/6.png"}


def test_bad_images_are_skipped_and_not_kept(tmp_path: Path) -> None:
    data = opened(tmp_path, photographs() | {"train/cat/2.png": b"no image"})
    reference = views(loader(data, bad_images="skip"))
    made = loader(data, tmp_path / "cache", bad_images="skip")
    assert same(views(made), reference) and same(views(loader(data, tmp_path / "cache", bad_images="skip")), reference)
    assert made._views.copy.known(data.names) == 11 and made._views.copy.read("train/cat/2.png") is None


def test_a_worker_that_is_not_forked_opens_the_copy_itself(tmp_path: Path) -> None:
    data = opened(tmp_path)
    copy, _ = open_copy(data, SIDE, tmp_path / "cache", 1.0)
    assert copy is not None
    pixels = np.asarray(data.decode(0, SIDE))
    pickle.loads(pickle.dumps(copy)).write(data.names[0], pixels)
    found = copy.read(data.names[0])
    assert found is not None and np.array_equal(found, pixels)


def test_a_teacher_and_its_student_share_a_copy(tmp_path: Path, capfd: Any) -> None:
    data = opened(tmp_path)
    hkd.distill(
        hkd.DistillConfig(
            dataset=f"folder:{data.files.path}", image_size=97, teacher="resnet8", student="resnet8", method="kd",
            epochs=1, batch_size=6, workers=0, device="cpu", tensorboard=False, run=str(tmp_path / "runs" / "a"),
        )
    )  # fmt: skip
    notes = [line for line in capfd.readouterr().err.splitlines() if "image copy: " in line]
    folder = files_of(tmp_path / "runs" / "cache")
    assert [note.split(" (")[0] for note in notes] == [
        f"image copy: {known} of 12 images known in {folder}" for known in (0, 12)
    ]
    spec = hkd.RunSpec.load(tmp_path / "runs" / "a" / "config.yaml")
    assert spec.data.revision == 2, "of the streamed loader"


def test_teachers_tables_are_filled_from_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = opened(tmp_path), tmp_path / "cache"
    index, view = torch.arange(12).repeat(5), torch.arange(5).repeat_interleave(12)
    expected = loader(data).images(index, view)
    assert torch.equal(loader(data, cache).images(index, view), expected)
    monkeypatch.setattr(FileDataset, "decode", None)
    assert torch.equal(loader(data, cache).images(index, view), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path, workers: int) -> None:
    """The loader takes nothing from torch's own generator, whose state a checkpoint keeps, and dropout draws from."""
    data = opened(tmp_path)

    def draws(made: Any, state: torch.Tensor, done: int, count: int) -> tuple[list[float], torch.Tensor]:
        torch.set_rng_state(state)
        found = [torch.rand(()).item() for _, _ in zip(range(count), made.epoch(0, done), strict=False)]
        return found, torch.get_rng_state()

    start = torch.Generator().manual_seed(3).get_state()
    whole, _ = draws(loader(data, workers=workers), start, 0, 3)
    first, state = draws(loader(data, workers=workers), start, 0, 1)
    rest, _ = draws(loader(data, workers=workers), state, 1, 2)
    assert [*first, *rest] == whole
