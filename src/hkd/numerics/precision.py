"""Bank and softmax arithmetic loses what HKD is about in 8 or 11 bits of mantissa; it costs little in 24."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """The context without autocast, on the device of a tensor."""
    return torch.autocast(like.device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
