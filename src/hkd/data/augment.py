"""14 operations on images, one drawn for each, made in batches; and the strong view: two of them and a rectangle.

All arithmetic is on integers, with amounts in steps of 1 / 65536, so that a view has the same pixels on every device
and in every batch. The operations are Pillow's on 8-bit RGB; :func:`autocontrast` rounds without the error of a float,
which differs from it by one level at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.data.randomness import draws

ONE = 1 << 16
"""1 as a fixed-point number of 16 fractional bits."""
FILL = (125, 123, 114)
"""The colour of the rectangle: the usual mean of CIFAR."""
GREY = (19595, 38470, 7471)
"""Weights of red, green and blue in ITU-R 601 luma, in 65536ths."""


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Images seen through maps of coordinates, nearest pixel, black outside.

    Args:
        images: (B, 3, S, S) uint8.
        matrices: (B, 6) int64 (a, b, c, d, e, f) in 65536ths: pixel (x, y) shows (a x + b y + c, d x + e y + f).
    """
    side = images.shape[2]
    steps = torch.arange(side, device=images.device)
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    x = (a * steps + b * steps[:, None] + c) >> 16
    y = (d * steps + e * steps[:, None] + f) >> 16
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    place = (y * side + x).where(inside, 0).flatten(1)
    moved = images.flatten(2).gather(2, place[:, None].expand(-1, 3, -1)).view(images.shape)
    return moved * inside[:, None]


def matrices(operations: Tensor, amounts: Tensor, side: int) -> Tensor:
    """(B, 6) for :func:`affine` of some of the last five :data:`OPERATIONS`; on the CPU, in float64 until rounded.

    Args:
        operations: (B,) their numbers.
        amounts: (B,) float64, of :func:`operate`.
        side: S in pixels.
    """
    signed = torch.zeros(len(amounts), 6, dtype=torch.float64)
    a, b, c, d, e, f = signed.T
    a += 1
    e += 1
    for name, column in (("shear-x", b), ("shear-y", d), ("translate-x", c), ("translate-y", f)):
        column.add_(amounts * (operations == OPERATIONS.index(name)))
    turned = operations == OPERATIONS.index("rotate")
    angle = torch.deg2rad(amounts) * turned
    cos, sin, middle = angle.cos(), angle.sin(), side / 2
    a += cos - 1
    e += cos - 1
    b -= sin
    d += sin
    c += (middle - cos * middle + sin * middle) * turned
    f += (middle - sin * middle - cos * middle) * turned
    c += (a + b) / 2  # of the middle of a pixel
    f += (d + e) / 2
    return (signed * ONE + 0.5).floor().long()


def blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Images between others (0) and themselves (65536), or beyond themselves, rounded down and clipped to a byte."""
    start = other.int()
    mixed = start + ((images.int() - start) * factor.int()[:, None, None, None] >> 16)
    return mixed.clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Luma, (B, 3, S, S) uint8 -> (B, 1, S, S) int32."""
    red, green, blue = images.int().chunk(3, dim=1)
    luma: Tensor = (red * GREY[0] + green * GREY[1] + blue * GREY[2] + ONE // 2) >> 16
    return luma


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards black."""
    return blend(torch.zeros_like(images), images, factor)


def colour(images: Tensor, factor: Tensor) -> Tensor:
    """Towards grey."""
    return blend(grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the mean luma of the image."""
    count = images.shape[2] * images.shape[3]
    total = grey(images).sum(dim=(1, 2, 3), keepdim=True)
    return blend((2 * total + count) // (2 * count), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards a mean over 3 x 3 pixels in which the middle counts five times; the border stays."""
    pixels = images.int()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    pixels[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return blend(pixels, images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the upper bits, so many of 8."""
    return images & (256 - (1 << (8 - (bits >> 16)))).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts what is at or above a threshold from 0 to 256."""
    return torch.where(images < (threshold >> 16)[:, None, None, None], images, 255 - images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel from 0 to 255."""
    pixels = images.int()
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    stretched = (pixels - low) * 255 // (high - low).clamp(min=1)
    return torch.where(high > low, stretched, pixels).to(torch.uint8)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Spreads the levels of each channel so that they are equally frequent."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    below = counts.cumsum(dim=2) - counts
    levels = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, levels.gather(2, pixels), pixels).view(images.shape).to(torch.uint8)


def identity(images: Tensor, _: Tensor) -> Tensor:
    """The images as they are."""
    return images


BY_VALUE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "brightness": brightness,
    "colour": colour,
    "contrast": contrast,
    "equalize": equalize,
    "identity": identity,
    "posterize": posterize,
    "sharpness": sharpness,
    "solarize": solarize,
}
"""What changes the values of pixels: uint8 (B, 3, S, S) and (B,) amounts in 65536ths -> uint8 (B, 3, S, S)."""
OPERATIONS = (*BY_VALUE, "rotate", "shear-x", "shear-y", "translate-x", "translate-y")
"""All that may be drawn. Rotations are about the middle, shears from the upper left corner."""
ENHANCEMENTS = ("brightness", "colour", "contrast", "sharpness")


def operate(images: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    """One operation for each image.

    Args:
        images: (B, 3, S, S) uint8, on any device.
        operations: (B,) int64 numbers of :data:`OPERATIONS`, on the CPU, so that no device is asked which images an
            operation has.
        amounts: (B,) float64 on the CPU, what each operation is done by: the part of the image that is kept (1 is all;
            beyond 1 its difference grows), bits, a threshold, degrees, a shear as a tangent, or pixels.
    """
    made, device = images.clone(), images.device
    steps = (amounts * ONE).round().long()
    for number, function in enumerate(BY_VALUE.values()):
        rows = (operations == number).nonzero()[:, 0]
        if len(rows) and function is not identity:
            here = rows.to(device, non_blocking=True)
            made[here] = function(images[here], steps[rows].to(device, non_blocking=True))
    rows = (operations >= len(BY_VALUE)).nonzero()[:, 0]
    if len(rows):
        here = rows.to(device, non_blocking=True)
        maps = matrices(operations[rows], amounts[rows], images.shape[2])
        made[here] = affine(images[here], maps.to(device, non_blocking=True))
    return made


def chosen(operations: Tensor, amounts: Mapping[str, Tensor]) -> Tensor:
    """(B,) float64: of the amounts (B,) of each operation by its name, that of each image's operation; else 0."""
    made = torch.zeros(len(operations), dtype=torch.float64)
    for name, values in amounts.items():
        made = torch.where(operations == OPERATIONS.index(name), values.double(), made)
    return made


def strong_amounts(operations: Tensor, magnitudes: Tensor, side: int) -> Tensor:
    """(B,) for :func:`operate`, within the ranges of the strong view.

    Enhancements keep .05 to .95, posterize 4 to 7 bits, solarize a threshold from 0 to 256; rotations go from -30 to 30
    degrees, shears from -.3 to .3, translations from -.3 to .3 of the side.

    Args:
        operations: (B,) numbers of :data:`OPERATIONS`.
        magnitudes: (B,) from 0 to 65535: the place within the range.
        side: S in pixels.
    """
    part = magnitudes.double() / ONE
    shift = 0.6 * part - 0.3
    return chosen(
        operations,
        {
            **dict.fromkeys(ENHANCEMENTS, ((18 * magnitudes + ONE + 10) // 20).double() / ONE),
            "posterize": 4 + (magnitudes >> 14),
            "solarize": (magnitudes + 255) >> 8,
            "rotate": 60 * part - 30,
            **dict.fromkeys(("shear-x", "shear-y"), shift),
            **dict.fromkeys(("translate-x", "translate-y"), side * shift),
        },
    )


def rectangle(images: Tensor, places: Tensor) -> Tensor:
    """Fills a square of up to half the side, cut off at the right and lower border.

    Args:
        images: (B, 3, S, S) uint8.
        places: (B, 3) from 0 to 65535: its size, and the column and row of its middle. It starts at int(max(0, x - v /
            2)) and holds int(v) + 1 columns, v being the size, and rows alike.
    """
    side = images.shape[2]
    size = places[:, :1] * side  # in 131072ths, as half of the side is the most
    first = ((4 * places[:, 1:] * side - size).clamp(min=0) >> 18)[:, :, None]  # in 262144ths
    steps = torch.arange(side, device=images.device)
    covered = (steps >= first) & (steps <= first + (size >> 17)[:, :, None])
    square = covered[:, :1] & covered[:, 1:].transpose(1, 2)
    fill = torch.tensor(FILL, dtype=torch.uint8).to(images.device, non_blocking=True).view(3, 1, 1)
    return torch.where(square[:, None], fill, images)


def strong_draws(seed: int, epoch: int, positions: Tensor) -> Tensor:
    """What is drawn for the strong views of an epoch, which depends on seed, epoch and position alone.

    Returns:
        (N, 8) int64 on the CPU: 63 bits for the crop, two numbers of operations with replacement, their two magnitudes,
        and the rectangle's three.
    """
    crop, which, how, where = (
        draws(f"strong {seed} {epoch} {part}", positions) for part in ("crop", "operations", "magnitudes", "rectangle")
    )
    count = np.uint64(len(OPERATIONS))
    columns = [crop >> np.uint64(1), which % count, which // count % count]
    columns += [_bits(how, 0), _bits(how, 1), _bits(where, 0), _bits(where, 1), _bits(where, 2)]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


def _bits(drawn: NDArray[np.uint64], number: int) -> NDArray[np.uint64]:
    """16 of 64 drawn bits."""
    return drawn >> np.uint64(16 * number) & np.uint64(ONE - 1)


def strong(images: Tensor, drawn: Tensor) -> Tensor:
    """Cropped and mirrored images under their operations and behind their rectangles.

    The augmentation of Jin et al., "Multi-Level Logit Distillation", CVPR 2023: both operations are always applied.

    Args:
        images: (B, 3, S, S) uint8, on any device.
        drawn: (B, 8) on the CPU, of :func:`strong_draws`.
    """
    for slot in (1, 2):
        operations = drawn[:, slot]
        images = operate(images, operations, strong_amounts(operations, drawn[:, slot + 2], images.shape[2]))
    return rectangle(images, drawn[:, 5:].to(images.device, non_blocking=True))
