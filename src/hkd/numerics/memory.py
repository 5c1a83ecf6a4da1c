"""What each branch remembers of every training image."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.numerics.arguments import check_number
from hkd.numerics.precision import at_least_float32, full_precision

BankStart = Literal["random", "first"]
BankType = Literal["float32", "bfloat16", "float16"]


class _Visited(NamedTuple):
    """The rows that an update wrote, as they were before it."""

    which: Tensor
    rows: Tensor
    seen: Tensor | None


class MemoryBank(nn.Module):
    r"""One row for each training image: a slow average of its pre-graph embedding.

    .. math:: M_i \leftarrow \mathrm{normalize}(m\, M_i + (1 - m)\, e_i)

    Rows start uniform in :math:`\pm\sqrt{3/d}`, not normalised. With ``start="first"`` the first embedding of an image
    replaces its row, instead of the average slowly forgetting the noise.

    Args:
        num_samples: N, the number of training images.
        dim: d, the embedding width.
        momentum: m, the part of a row that stays at each visit.
        start: "random" (the paper) or "first".
        dtype: of the rows; the arithmetic is at least float32.

    Attributes:
        rows: (N, d) buffer. No gradient ever flows into it.
        seen: (N,) boolean buffer, only with ``start="first"``: which rows hold an embedding.

    Raises:
        ValueError: momentum, start or dtype is not one of the values above; the last two by the names that the losses
            give them, ``bank_start`` and ``bank_dtype``.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; section
    3.4 of Zhou et al., ICCV 2021.
    """

    rows: Tensor
    seen: Tensor

    def __init__(
        self, num_samples: int, dim: int, momentum: float = 0.9, start: BankStart = "random",
        dtype: BankType = "float32",
    ) -> None:  # fmt: skip
        super().__init__()
        check_number("momentum", momentum)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1); got {momentum}")
        for name, value, values in (("bank_start", start, get_args(BankStart)),
                                    ("bank_dtype", dtype, get_args(BankType))):  # fmt: skip
            if value not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}; got {value!r}")
        self.momentum = momentum
        self.start = start
        bound = math.sqrt(3 / dim)
        self.register_buffer("rows", torch.empty(num_samples, dim, dtype=getattr(torch, dtype)).uniform_(-bound, bound))
        if start == "first":
            self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))
        self._visited: _Visited | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def update(self, index: Tensor, embedding: Tensor) -> None:
        """Moves the visited rows towards their embeddings.

        An index that is in the batch more than once moves its row once, by the mean of its embeddings. A row whose
        embedding is not finite stays as it is.

        Args:
            index: (B,) rows to visit, integers.
            embedding: (B, d) normalised embeddings.
        """
        index = as_index(index, self.rows.device, len(self))
        finite = embedding.isfinite().all(dim=1)
        stored = self.rows[index]
        before = at_least_float32(stored)
        same = ((index[:, None] == index[None, :]) & finite).to(before.dtype)
        visits = same.sum(dim=1, keepdim=True)
        with full_precision(self.rows):
            mean = same @ embedding.to(before.dtype).masked_fill(~finite[:, None], 0) / visits.clamp(min=1)
        row = self.momentum * before + (1 - self.momentum) * mean
        seen = self.seen[index] if self.start == "first" else None
        if seen is not None:
            row = torch.where(seen[:, None], row, mean)
            self.seen.index_copy_(0, index, seen | (visits[:, 0] > 0))
        row = torch.where(visits > 0, F.normalize(row, dim=1), before)
        # Duplicates write the same values to the same row, so their order does not matter.
        self.rows.index_copy_(0, index, row.to(self.rows.dtype))
        self._visited = _Visited(index, stored, seen)

    @torch.no_grad()
    def undo_update(self) -> None:
        """Takes the last update back, once: the bank is to the bit what it was before. Waits for no device."""
        if self._visited is None:
            return
        index, rows, seen = self._visited
        index = index.to(self.rows.device)
        self.rows.index_copy_(0, index, rows.to(self.rows))
        if seen is not None:
            self.seen.index_copy_(0, index, seen.to(self.seen))
        self._visited = None


def as_index(index: Tensor, device: torch.device, rows: int, name: str = "index") -> Tensor:
    """Bank rows as int64 on a device, without waiting for it.

    Raises:
        ValueError: they are no tensor of integers, by the argument's name; or one in memory is no row of the bank.
            Those on a GPU are not looked at, since that would make the host wait for it.
    """
    if not isinstance(index, Tensor):
        raise ValueError(f"{name}: expected a tensor of integers; got {type(index).__name__}")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers; got {index.dtype}")
    if index.device.type == "cpu" and index.numel():
        values = index.detach().numpy()  # NumPy's minimum is not an operation that a GPU would have to wait for
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= rows:
            raise ValueError(f"{name}: expected 0 to {rows - 1}; got {low if low < 0 else high}")
    return index.to(device, torch.int64, non_blocking=True)
