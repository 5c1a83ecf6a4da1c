"""Resized crops and mixed images, one image and one pixel at a time."""

import hashlib
import math
import random

import torch
from torch import Tensor

MASK = 2**64 - 1


def bits(name: str, row: int) -> int:
    """Output number ``row`` of SplitMix64, which starts at a digest of the name."""
    z = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    z = (z + (row + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def halves(drawn: int) -> tuple[float, float]:
    return (drawn % 2**32) / 2**32, (drawn >> 32) / 2**32


def box(key: int, side: int, smallest: float) -> list[int]:
    """Top, left, height, width: ten tries of an area and an aspect, else the whole image."""
    height = width = side
    for number in range(10):
        area, ratio = halves(bits(f"box {number}", key))
        pixels = side**2 * (smallest + (1 - smallest) * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= side and 0 < h <= side:
            height, width = h, w
            break
    down, right = halves(bits("place", key))
    return [math.floor(down * (side - height + 1)), math.floor(right * (side - width + 1)), height, width]


def mixed_cross_entropy(logits: Tensor, label: Tensor, partner: Tensor, weight: float) -> float:
    """The mean over images of the cross-entropy with (1 - w) of one class and w of the other; -1 is no class."""
    total = 0.0
    known = [sum(int(y) >= 0 for y in labels) for labels in (label, partner)]
    for row, y, other in zip(logits.double(), label.tolist(), partner.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(float(value)) for value in row))
        if y >= 0:
            total += (1 - weight) * (log_sum - float(row[y])) / known[0]
        if other >= 0:
            total += weight * (log_sum - float(row[other])) / known[1]
    return total


def mixed(images: Tensor, draw: random.Random, mixup: float, cutmix: float) -> tuple[Tensor, float]:
    """Mixup or cutmix as published, (B, 3, H, W) float64, and λ, the part of each image that is its own."""
    count, _, height, width = images.shape
    made = torch.zeros(images.shape, dtype=torch.float64)
    cuts = cutmix > 0 and (mixup == 0 or draw.random() < 0.5)
    own = draw.betavariate(cutmix, cutmix) if cuts else draw.betavariate(mixup, mixup)
    inside = torch.zeros(height, width, dtype=torch.bool)
    if cuts:
        rows, columns = (int(side * math.sqrt(1 - own)) // 2 for side in (height, width))
        y, x = draw.randrange(height), draw.randrange(width)
        for row in range(height):
            for column in range(width):
                inside[row, column] = y - rows <= row < y + rows and x - columns <= column < x + columns
        own = 1 - int(inside.sum()) / (height * width)
    for number in range(count):
        mine, other = images[number].double(), images[count - 1 - number].double()
        made[number] = torch.where(inside, other, mine) if cuts else own * mine + (1 - own) * other
    return made, own
