"""One way to change the size of images that are in memory."""

import torch
from torch import Tensor


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resizes uint8 (N, 3, H, W) images to squares of ``size`` pixels, bilinear with antialiasing; None leaves them."""
    if size is None or images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional

    return torch.cat([functional.resize(part, [size, size], antialias=True) for part in torch.split(images, 1024)])
