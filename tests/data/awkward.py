"""Image files as people have them, one of each kind that is easily read in the wrong way."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Coarse coloured patches, different in each corner, that a rotation or another crop changes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _saved(image: Image.Image, format: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def awkward() -> dict[str, bytes]:
    """Eight files of eight kinds, by their names."""
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: a quarter turn
    clear = scene(150, 140, 2)
    clear.putalpha(scene(150, 140, 3).convert("L"))
    palette = scene(160, 150, 4).quantize(32)
    deep = np.asarray(scene(180, 130, 5).convert("L"), dtype=np.uint16) * 257
    return {
        "exif.jpg": _saved(scene(170, 120, 1), "JPEG", exif=exif),
        "rgba.png": _saved(clear, "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=bytes(range(0, 256, 8))),
        "cmyk.jpg": _saved(scene(140, 170, 6).convert("CMYK"), "JPEG"),
        "sixteen.png": _saved(Image.fromarray(deep), "PNG"),
        "grey.jpg": _saved(scene(150, 120, 7).convert("L"), "JPEG"),
        "large.jpg": _saved(scene(6000, 4000, 8), "JPEG"),
        "panorama.png": _saved(scene(900, 110, 9), "PNG"),
    }
