"""Single pictures: which are decoded, and what becomes of unusual ones."""

import io
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

import hkd
from hkd.data.formats import FORMATS
from hkd.data.images import centre, open_image, resize, to_rgb
from tests.data.test_datasets import class_folders, encoded, picture, write_files


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
def test_formats_that_are_meant(format: str) -> None:
    image = to_rgb(open_image(encoded(picture((9, 7), 1), format)))
    assert image.size == (9, 7) and image.mode == "RGB"
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"}


@pytest.mark.parametrize(
    "format", ["EPS", "GIF", "ICO", "TGA", "PCX", "SGI", "ICNS", "JPEG2000", "DDS", "PDF", "SPIDER"]
)
def test_other_formats_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """An EPS would start Ghostscript, whatever its file is called."""

    def started(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    image = picture((16, 16), 1)
    data = encoded(image.convert("F") if format == "SPIDER" else image, format)
    with pytest.raises(UnidentifiedImageError):
        open_image(data)
    files = class_folders((16, 16)) | {"train/cat/0.png": data, "train/cat/1.jpg": data}
    found = hkd.load_dataset(f"folder:{write_files(tmp_path, files)}", image_size=16)
    for index in (0, 1):
        with pytest.raises(hkd.RequestError, match=r"cannot read \S+/train/cat/\d.\w+ \(not an image\)"):
            found[index]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    """Their range is not known: those of [0, 1] would all be black."""
    data = encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF")
    files = class_folders() | {"train/cat/0.png": data}
    with pytest.raises(hkd.RequestError, match=r"cannot read \S+0.png \(floating-point pixels\)"):
        hkd.load_dataset(f"folder:{write_files(tmp_path, files)}", image_size=8)[0]


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 60_000)])
def test_a_thread_of_an_image_takes_no_more_memory_than_others(size: tuple[int, int]) -> None:
    """Scaled by its shorter side, 1 x 60,000 pixels would be 256 x 15,360,000: 12 GB."""
    image = Image.new("RGB", size, "white")
    assert centre(image, 224).size == (224, 224)


def test_the_middle_of_a_long_image_is_the_middle() -> None:
    row = np.zeros((3, 400, 3), dtype=np.uint8)
    row[:, 199:201] = 255
    columns = np.asarray(centre(Image.fromarray(row), 20), dtype=float)[:, :, 0].sum(0)
    assert (columns * np.arange(20)).sum() / columns.sum() == pytest.approx(9.5, abs=0.5)


def test_usual_images_are_scaled_as_a_whole() -> None:
    image = picture((96, 3), 1)  # 32 times as wide as it is high
    scale = round(16 * 8 / 7) / 3
    scaled = image.resize((round(96 * scale), round(3 * scale)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - 16) // 2, (scaled.height - 16) // 2
    assert centre(image, 16).tobytes() == scaled.crop((left, top, left + 16, top + 16)).tobytes()


def test_a_picture_that_is_cut_short_is_one_line(tmp_path: Path) -> None:
    for format, name in (("JPEG", "1.jpg"), ("PNG", "2.png"), ("TIFF", "3.tif"), ("WEBP", "4.webp")):
        data = encoded(picture((64, 64), 1), format)
        files = class_folders() | {f"train/cat/{name}": data[: len(data) // 2]}
        found = hkd.load_dataset(f"folder:{write_files(tmp_path / format, files)}", image_size=8)
        with pytest.raises(hkd.RequestError, match=rf"cannot read \S+{name}") as error:
            found[found.names.index(f"train/cat/{name}")]
        assert str(error.value).isprintable()


def test_an_animation_is_its_first_picture() -> None:
    buffer = io.BytesIO()
    frames = [picture((8, 8), n) for n in range(3)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    assert to_rgb(open_image(buffer.getvalue())).tobytes() == frames[0].tobytes()


def test_images_that_would_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size may be what a stranger's file of weights says."""
    images = torch.arange(5 * 3 * 64, dtype=torch.uint8).view(5, 3, 8, 8)
    whole = resize(images, 16)
    monkeypatch.setattr("hkd.data.images.PIXELS_AT_ONCE", 2 * 16**2)
    assert resize(images, 16).equal(whole), "in parts"
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2 * whole.numel() - 1))
    with pytest.raises(hkd.RequestError, match="image_size: 5 images of 16x16 pixels take 0.0 GB in memory, more than"):
        resize(images, 16)
