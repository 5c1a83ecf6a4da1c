"""What all processes of a training see together. In a single process each function returns its argument."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    r"""The tensors of all processes, one after another: (B, ...) of each of W gives (W B, ...), the same in all.

    Gradients pass. A process receives the sum of the gradients that all processes have for its part, so that with the
    mean over processes that data-parallel training takes, :math:`\frac{1}{W} \sum_r \nabla L_r`, they are those of one
    process with the whole batch, whether :math:`L_r` is the loss of all its images or of those of process r.

    Args:
        tensor: (B, ...), of the same shape in every process.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def local_part(gathered: Tensor) -> Tensor:
    """This process's part of what :func:`gather` returned: (W B, ...) gives (B, ...)."""
    return gathered if world_size() == 1 else gathered.chunk(world_size())[dist.get_rank()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        if total is gradient:
            total = gradient.clone()  # autograd may hold the same tensor elsewhere
        dist.all_reduce(total)
        return local_part(total)


@torch.no_grad()
def agree(*tensors: Tensor) -> bool:
    """Whether tensors have the same values in all processes, by their sums and the sums of their squares in float64."""
    if world_size() == 1 or not tensors:
        return True
    parts = [tensor.detach().double().nan_to_num() for tensor in tensors]
    sums = torch.stack([value for part in parts for value in (part.sum(), part.square().sum())])
    everyone = [torch.empty_like(sums) for _ in range(world_size())]
    dist.all_gather(everyone, sums)
    return all(torch.equal(everyone[0], other) for other in everyone)
