"""Arithmetic in float32 or more, where 8 or 11 bits of mantissa are too few: memory banks, softmax, relations."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """The context without autocast, on the device of a tensor."""
    return torch.autocast(like.device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor as float32 if its type is shorter, else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
