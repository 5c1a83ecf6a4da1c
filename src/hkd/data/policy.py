"""What a run does to its training images, and the operations that a policy draws for each view of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.data.augment import ENHANCEMENTS, OPERATIONS, chosen, operate
from hkd.data.randomness import draws

MIN_CROP = 0.08
"""The smallest part of an image's area that a random resized crop shows: Szegedy et al., CVPR 2015."""
POLICIES = ("trivial", "randaugment")
STEPS = 30
"""Of a magnitude, from nothing to the most."""
MAGNITUDE = 9
"""Of all operations of RandAugment, of 30."""


@dataclass(frozen=True)
class Augmentation:
    """How training images are shown.

    Attributes:
        kind: "crop", "resized-crop", or one of :data:`POLICIES`, which draw operations on top of a crop; None is the
            usual one of the data: crops of images in memory, resized crops of streams.
        min_crop: the smallest part of the area that a resized crop shows; crops are resized where it is given.
    """

    kind: str | None = None
    min_crop: float | None = None

    def resizes(self, *, in_memory: bool) -> bool:
        """Whether crops are scaled to the size of the network, not cut out of an image padded by an eighth."""
        if self.kind in ("crop", "resized-crop"):
            return self.kind == "resized-crop"
        return self.min_crop is not None or not in_memory

    @property
    def smallest(self) -> float:
        return MIN_CROP if self.min_crop is None else self.min_crop

    @property
    def policy(self) -> str | None:
        return self.kind if self.kind in POLICIES else None

    def name(self, *, in_memory: bool, flip: bool) -> str:
        """What decides the pixels of a view, beside its number; the name of tables of what a teacher says of it."""
        crop = "resized-crop" if self.resizes(in_memory=in_memory) else "crop"
        if crop == "resized-crop" and self.smallest != MIN_CROP:
            crop += f" {self.smallest!r}"
        parts = [f"{self.policy} of {crop}" if self.policy else crop]
        if not flip and not (in_memory and parts == ["crop"]):  # whose numbers of views say whether they are mirrored
            parts.append("unflipped")
        return ", ".join(parts)


def view_keys(positions: Tensor, views: Tensor) -> Tensor:
    """A number for each view of each image, (B,) int64 each on the CPU, for :func:`hkd.data.randomness.draws`."""
    return positions << 20 | views


def altered(images: Tensor, policy: str, keys: Tensor) -> Tensor:
    """Images after the operations that a policy draws for them.

    ``trivial`` is one operation of a random magnitude, ``randaugment`` two of magnitude 9 of 30, both in torchvision's
    ranges: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021 (the wide
    ranges); Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS
    2020.

    Args:
        images: (B, 3, S, S) uint8, on any device.
        policy: one of :data:`POLICIES`.
        keys: (B,) of :func:`view_keys`, on the CPU: what is drawn depends on the policy and the key alone.
    """
    drawn = draws(policy, keys)
    operations, bits = _divided(drawn, len(OPERATIONS))
    if policy == "trivial":
        magnitudes, bits = _divided(bits, STEPS + 1)
        amounts = policy_amounts(policy, operations, magnitudes, _signs(bits, 0), images.shape[2])
        return operate(images, operations, amounts)
    second, bits = _divided(bits, len(OPERATIONS))
    for number, numbers in enumerate((operations, second)):
        amounts = policy_amounts(
            policy, numbers, torch.full_like(numbers, MAGNITUDE), _signs(bits, number), images.shape[2]
        )
        images = operate(images, numbers, amounts)
    return images


def policy_amounts(policy: str, operations: Tensor, magnitudes: Tensor, signs: Tensor, side: int) -> Tensor:
    """(B,) amounts for :func:`hkd.data.augment.operate`.

    The wide ranges of trivial are a shear up to .99, a translation up to 32 pixels (at most the side), 135 degrees,
    enhancements to 1 ± .99, and 8 to 2 bits; those of randaugment .3, 150/331 of the side, 30 degrees, 1 ± .9, and 8 to
    4 bits. Thresholds of both fall from 255 to 0.

    Args:
        operations: (B,) numbers of :data:`OPERATIONS`.
        magnitudes: (B,) int64 from 0 to 30.
        signs: (B,) 1 or -1, of what has a direction.
        side: S in pixels.
    """
    wide = policy == "trivial"
    shear, pixels, degrees, gain, levels = (
        (0.99, min(32, side), 135, 0.99, 6) if wide else (0.3, 150 / 331 * side, 30, 0.9, 4)
    )
    part = magnitudes.double() / STEPS
    return chosen(
        operations,
        {
            **dict.fromkeys(ENHANCEMENTS, 1 + signs * gain * part),
            "posterize": 8 - (levels * part).round(),
            "solarize": (255 * (STEPS - magnitudes) + STEPS - 1) // STEPS,  # x < t is x < ceil(t) for whole x
            "rotate": signs * degrees * part,
            **dict.fromkeys(("shear-x", "shear-y"), signs * shear * part),
            **dict.fromkeys(("translate-x", "translate-y"), signs * (pixels * part).floor()),
        },
    )


def _divided(drawn: NDArray[np.uint64], by: int) -> tuple[Tensor, NDArray[np.uint64]]:
    """A number below ``by`` of each, (B,) int64, and what is left of the random bits."""
    return torch.from_numpy((drawn % np.uint64(by)).astype(np.int64)), drawn // np.uint64(by)


def _signs(bits: NDArray[np.uint64], number: int) -> Tensor:
    """(B,) 1 or -1, of one random bit of each."""
    return torch.from_numpy(1 - 2 * (bits >> np.uint64(number) & np.uint64(1)).astype(np.int64))
