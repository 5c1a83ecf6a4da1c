"""From a picture to what a network takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hkd.data.base import LARGEST_IN_MEMORY
from hkd.data.images import preprocess, to_tensor
from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import printable
from hkd.types import Channels


@dataclass(frozen=True)
class Transform:
    """What an evaluation does with a picture before a network sees it.

    Attributes:
        size: side in pixels of what the network sees, S.
        crop: a key of :data:`hkd.data.images.CROPS`.
        mean, std: of the channels, for images scaled to [0, 1].
    """

    size: int
    crop: str
    mean: Channels
    std: Channels

    def __call__(self, image: Image.Image) -> Tensor:
        """Any PIL picture, as it was opened, as normalised float32 (3, S, S).

        Raises:
            RequestError: it is no PIL picture, or has floating-point pixels or none.
        """
        return self.normalised(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """The picture before the normalisation, uint8 (3, S, S). Raises as :meth:`__call__` does."""
        if not isinstance(image, Image.Image):
            raise RequestError(
                f"image: expected a PIL image, as Image.open gives it; got {shown(type(image).__name__)}"
            )
        try:
            return to_tensor(preprocess(image, self.size, self.crop))
        except ValueError as error:
            raise RequestError(
                f"image: expected a picture with 8-bit or 16-bit pixels; got {printable(error)}"
            ) from error

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, S, S) as float32, as loaders normalise."""
        mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (self.mean, self.std))
        return torch.addcmul(-mean / std, pixels.float(), 1 / (255 * std))


def transform_of(about: Mapping[str, Any], place: str, size: int | None = None) -> Transform:
    """The transform of a network, of what its file says.

    Args:
        about: what :func:`hkd.models.weights.read_about` returned.
        place: the file, for the error message.
        size: side in pixels, where it is not the file's.

    Raises:
        RequestError: the file does not say its image size or its normalisation.
    """
    if missing := [name for name in ("image_size", "mean", "std") if name not in about]:
        raise RequestError(f"checkpoint: {printable(place, 4096)} does not say its {missing[0]}")
    size = size or int(about["image_size"])
    return Transform(size, crop_for(about, size), tuple(about["mean"]), tuple(about["std"]))


def crop_for(about: Mapping[str, Any], size: int) -> str:
    """How pictures are cropped for a network: what its file says, else, and at another size, by the size."""
    by_size = "fit" if size <= LARGEST_IN_MEMORY else "centre"
    return str(about.get("crop", by_size)) if size == about["image_size"] else by_size
