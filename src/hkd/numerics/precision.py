"""Arithmetic in float32 or more, where 8 or 11 bits of mantissa are too few: memory banks, softmax, relations."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """The context without autocast, on the device of a tensor."""
    return torch.autocast(like.device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor as float32 if its type is shorter, else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def product_dtype(like: Tensor) -> torch.dtype:
    """The type for products with the rows of a memory bank: bfloat16 where autocast computes in it, else the tensor's.

    Their sums are float32 or more in either case. Ask before :func:`full_precision` switches autocast off.
    """
    device = like.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
        return torch.bfloat16
    return at_least_float32(like).dtype
