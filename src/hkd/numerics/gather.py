"""What all processes of a training see together. In a single process each function returns its argument."""

import zlib
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


def agree(*tensors: Tensor) -> bool:
    """Whether tensors are the same in all processes, to the bit; their number and shapes may differ, too."""
    if world_size() == 1 or not tensors:
        return True
    mark = torch.tensor([checksum(*tensors)], device=tensors[0].device)
    everyone = [torch.empty_like(mark) for _ in range(world_size())]
    dist.all_gather(everyone, mark)
    return len({int(other) for other in everyone}) == 1


@torch.no_grad()
def checksum(*tensors: Tensor) -> int:
    """A number below 2**63 from shapes, types and bits of tensors, whose places count. Waits for the device."""
    shapes = zlib.crc32(repr([(tuple(tensor.shape), tensor.dtype) for tensor in tensors]).encode())
    sums = [int(value) for value in torch.stack([_sum_of_bits(tensor).cpu() for tensor in tensors])] if tensors else []
    total = sum((2 * place + 1) * value for place, value in enumerate(sums))
    return (total * 0x9E3779B97F4A7C15 + shapes) % 2**63


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORDS_AT_ONCE = 2**22


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """The sum over places i of (2 i + 1) times the bits at i as an integer, modulo 2**64; a scalar."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    words = values.detach().reshape(-1).view(_WORDS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), _WORDS_AT_ONCE):
        part = words[start : start + _WORDS_AT_ONCE].long()
        odd = torch.arange(2 * start + 1, 2 * (start + len(part)), 2, device=words.device)
        total += (part * odd).sum()
    return total
