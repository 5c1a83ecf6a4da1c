"""Random resized crops of whole batches: boxes that are drawn by keys, and Pillow's bilinear scaling in integers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.data.randomness import draws

TRIES = 10
BITS = 22
"""Fractional bits of Pillow's weights for 8-bit pixels."""


def drawn_boxes(keys: Tensor, side: int, smallest: float) -> Tensor:
    """A box in a square image for each key, (B, 4) int64 (top, left, height, width), on the CPU.

    The area is uniform from ``smallest`` to 1 of the image's, the logarithm of width to height from log 3/4 to log 4/3,
    tried ten times until the box fits, and then the whole image; the place is uniform.

    Args:
        keys: (B,) int64: a box depends on its key alone.
        side: S in pixels.
        smallest: the smallest part of the area.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """
    count = len(keys)
    height, width = np.full(count, side), np.full(count, side)
    open_ = np.ones(count, dtype=bool)
    for number in range(TRIES):
        area, ratio = _halves(draws(f"box {number}", keys))
        area = side * side * (smallest + (1 - smallest) * area)
        aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * ratio)
        w, h = (np.round(np.sqrt(x)).astype(np.int64) for x in (area * aspect, area / aspect))
        fits = open_ & (w > 0) & (w <= side) & (h > 0) & (h <= side)
        width, height, open_ = np.where(fits, w, width), np.where(fits, h, height), open_ & ~fits
    down, right = _halves(draws("place", keys))
    top, left = (np.floor(part * (side - length + 1)) for part, length in ((down, height), (right, width)))
    return torch.from_numpy(np.stack([top, left, height, width], axis=1).astype(np.int64))


def _halves(drawn: NDArray[np.uint64]) -> list[NDArray[np.float64]]:
    """Two numbers in [0, 1) of each 64 random bits."""
    return [(drawn >> np.uint64(shift) & np.uint64(2**32 - 1)).astype(np.float64) / 2**32 for shift in (0, 32)]


def _weights(start: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """How a row of ``length`` pixels from ``start`` on is scaled to ``side``, which is at least as many.

    Returns:
        The first and the second pixel of each new one, (B, 2, side) int64, and the weight of the second in units of
        2^-22, (B, side) int64: as Pillow has them, on the CPU.
    """
    scale = length[:, None].double() / side
    centre = (torch.arange(side) + 0.5) * scale
    first = (centre - 0.5).floor()
    weight = ((centre - 0.5 - first) * 2**BITS + 0.5).floor().long()
    last = length[:, None] - 1
    pair = torch.stack([first, first + 1], dim=1).long().clamp(min=0)
    return torch.minimum(pair, last[:, None]) + start[:, None, None], weight


def resized(images: Tensor, rows: Tensor, boxes: Tensor) -> Tensor:
    """Boxes of square images, scaled to the size of the images as Pillow's bilinear ``resize`` does.

    Args:
        images: (N, S, S, 3) uint8, on any device.
        rows: (B,) which images, on their device.
        boxes: (B, 4) of :func:`drawn_boxes`, on the CPU.

    Returns:
        (B, S, S, 3) uint8.
    """
    pixels = images[rows].int()
    for axis in (1, 0):  # columns first, as Pillow does; two transpositions are none
        pairs, weights = _weights(boxes[:, axis], boxes[:, axis + 2], images.shape[1])
        pixels = _scaled(pixels.transpose(1, 2), pairs, weights)
    return pixels.to(torch.uint8)


def _scaled(pixels: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    """The first of two axes scaled, by whole lines of the other: (B, S, S, 3) int32, rounded to whole numbers."""
    count, side, device = len(pixels), pixels.shape[1], pixels.device
    lines = pixels.reshape(count * side, side * 3)
    at = (pairs + torch.arange(count)[:, None, None] * side).to(device, non_blocking=True)
    weight = weights.int().to(device, non_blocking=True)[:, :, None]
    first, second = (lines[at[:, n].flatten()].view(count, side, side * 3) for n in (0, 1))
    scaled = (first * (2**BITS - weight) + second * weight + 2 ** (BITS - 1)) >> BITS
    return scaled.view(pixels.shape)  # type: ignore[no-any-return]
