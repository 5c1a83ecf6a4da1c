"""Operations on single pictures and on stacks of them."""

from __future__ import annotations

import io
import math
import random
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hkd.data.formats import readable_formats
from hkd.errors import RequestError
from hkd.outside import printable, whole_number

Pixels = NDArray[np.uint8]

WIDEST = 32
"""How many times longer one side of an image may be than the other before its ends are cut off."""


LARGEST_SIDE = 4096
"""Pixels to which images are resized at most, as :class:`hkd.data.DataSpec` has it."""
PIXELS_AT_ONCE = 256 * 224**2
"""Of images that are resized or evaluated together: their size may be a stranger's word."""


def images_at_once(size: int) -> int:
    """How many images of ``size`` x ``size`` pixels are resized or evaluated together at most."""
    return max(1, PIXELS_AT_ONCE // int(size) ** 2)


def check_size(image_size: Any) -> None:
    """Raises :class:`RequestError` for what is neither a side in pixels nor None."""
    if image_size is not None:
        whole_number("image_size", image_size, 1, LARGEST_SIDE)


def open_image(data: bytes) -> Image.Image:
    """A picture from the bytes of its file, not yet decoded; :func:`to_rgb` decodes it.

    Raises:
        PIL.UnidentifiedImageError: it is no picture in one of :func:`readable_formats`.
        PIL.Image.DecompressionBombError: it has more pixels than Pillow opens.
        Exception: a decoder may raise anything for a hostile file.
    """
    return Image.open(io.BytesIO(data), formats=readable_formats())


def unreadable(error: Exception) -> str:
    """Why a file could not be read as a picture, in words."""
    return "not an image" if isinstance(error, UnidentifiedImageError) else printable(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, turned as its EXIF data says: 16-bit grey is scaled, transparency becomes white.

    Colours are taken as they are stored: ICC profiles change nothing, and CMYK becomes the complements of its inks.

    Raises:
        ValueError: its pixels are floating-point numbers, whose range is not known, or there are none.
    """
    if image.mode == "F" or 0 in image.size:
        raise ValueError("floating-point pixels" if image.mode == "F" else "no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which a plain conversion would clip to white
        return Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def shrunken(image: Image.Image, side: int) -> Image.Image:
    """Any picture as RGB, reduced so that its shorter side is ``side`` pixels; a smaller one stays as it is.

    A JPEG is decoded at 1/8, 1/4 or 1/2 of its size where that leaves the shorter side as long: libjpeg then computes a
    part of each block's cosine transform alone (the "scaled DCT").

    Raises:
        ValueError: see :func:`to_rgb`.
    """
    image.draft(None, (side, side))  # of other formats it changes nothing
    image = to_rgb(image)
    scale = side / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to ``size`` pixels and crops the middle of the longer."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)


def centre(image: Image.Image, size: int) -> Image.Image:
    """The middle ``size`` x ``size`` pixels of an image whose shorter side is scaled to 8/7 of that (256 for 224).

    Of an image that is more than 32 times as long as it is wide only the middle is scaled, because the whole would not
    fit into the memory.
    """
    most = WIDEST * min(image.size)
    if max(image.size) > most:
        width, height = min(image.width, most), min(image.height, most)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    scale = round(size * 8 / 7) / min(image.size)
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


CROPS = {"fit": fit, "centre": centre}
"""How an evaluation crops, by the kind of data set: decoded into memory, or streamed from its files."""


def preprocess(image: Image.Image, size: int, crop: str) -> Image.Image:
    """Any picture as an evaluation shows it to a network: RGB, ``size`` x ``size`` pixels.

    The one way from a picture to pixels: of evaluations, of ``hkd predict`` and of ``model.transform``; the model card
    of an export repeats the source of :func:`to_rgb` and of the crop.

    Args:
        image: of any mode, with its EXIF data.
        size: side in pixels.
        crop: a key of :data:`CROPS`.

    Raises:
        ValueError: see :func:`to_rgb`.
    """
    return CROPS[crop](to_rgb(image), size)


def random_crop(pixels: Pixels, size: int, generator: random.Random) -> Image.Image:
    """A random square of an image, uint8 (H, W, 3), that is first scaled to that size and padded by an eighth."""
    padding = size // 8
    image = fit(Image.fromarray(pixels), size)
    top, left = (generator.randint(-padding, padding) for _ in range(2))
    return image.crop((left, top, left + size, top + size))  # black where there is no image


def random_resized_crop(pixels: Pixels, size: int, generator: random.Random, smallest: float = 0.08) -> Image.Image:
    """A random part of an image, uint8 (H, W, 3), scaled to a square: up to all of its area, aspect 3:4 to 4:3.

    Pixels outside of the part are not looked at.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """
    height, width = pixels.shape[:2]
    for _ in range(10):
        area = width * height * generator.uniform(smallest, 1)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.randint(0, width - w), generator.randint(0, height - h)
            part = Image.fromarray(pixels[top : top + h, left : left + w])
            return part.resize((size, size), Image.Resampling.BILINEAR)
    return fit(Image.fromarray(pixels), size)


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resizes uint8 (N, 3, H, W) images to squares of ``size`` pixels, bilinear with antialiasing; None keeps them.

    Raises:
        RequestError: they would take more than half of this machine's memory.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional

    needed, memory = images.shape[0] * images.shape[1] * size * size, psutil.virtual_memory().total
    if needed > memory / 2:
        raise RequestError(
            f"image_size: {len(images):,} images of {size}x{size} pixels take {needed / 1e9:.1f} GB in memory, more "
            f"than half of this machine's {memory / 1e9:.1f} GB; choose a smaller size"
        )
    at_once = images_at_once(size)  # they are floats on the way
    parts = (functional.resize(part, [size, size], antialias=True) for part in torch.split(images, at_once))
    resized = images.new_empty(len(images), images.shape[1], size, size)
    for place, part in zip(torch.split(resized, at_once), parts, strict=True):
        place.copy_(part)
    return resized
