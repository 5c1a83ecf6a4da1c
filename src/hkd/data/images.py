"""Operations on single pictures and on stacks of them."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, turned as its EXIF data says: 16-bit grey is scaled, transparency becomes white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which a plain conversion would clip to white
        return Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to ``size`` pixels and crops the middle of the longer."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)


def centre(image: Image.Image, size: int) -> Image.Image:
    """The middle ``size`` x ``size`` pixels of an image whose shorter side is scaled to 8/7 of that (256 for 224)."""
    scale = round(size * 8 / 7) / min(image.size)
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, size: int, generator: random.Random) -> Image.Image:
    """A random part of an image (8 to 100 % of its area, aspect 3:4 to 4:3), scaled to a square.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.randint(0, width - w), generator.randint(0, height - h)
            box = (left, top, left + w, top + h)
            return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return fit(image, size)


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resizes uint8 (N, 3, H, W) images to squares of ``size`` pixels, bilinear with antialiasing; None keeps them."""
    if size is None or images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional

    return torch.cat([functional.resize(part, [size, size], antialias=True) for part in torch.split(images, 1024)])
