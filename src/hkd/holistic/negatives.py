"""The negatives of a step: which rows of a memory bank its anchors are contrasted with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hkd.numerics.contrast import NegativeBlock
from hkd.numerics.gather import gather, local_part
from hkd.numerics.memory import as_index
from hkd.numerics.negatives import NegativeSampler

Sampling = Literal["shared", "all", "per_sample"]


class Negatives(NamedTuple):
    """Bank rows for the anchors of a batch, and which of them are no negatives of an anchor."""

    rows: Tensor | None
    """(K,) for all anchors, (B, K) for each, or None for the whole bank."""
    excluded: Tensor | None
    """(B, K) boolean, or None where no row is excluded."""
    anchors: Tensor
    """(B,) the rows of the anchors' images."""


def drawn_negatives(sampler: NegativeSampler, sampling: Sampling, index: Tensor) -> Negatives:
    """The negatives of the sampler's present draw, for anchors of rows ``index`` (B,)."""
    if sampling == "all":
        return Negatives(None, None, index)
    if sampling == "shared":
        return _of_other_classes(sampler, sampler.shared(), index)
    rows, surplus = sampler.per_sample(gather(index))
    return Negatives(local_part(rows), None if surplus is None else local_part(surplus), index)


def given_negatives(sampler: NegativeSampler, rows: Tensor, index: Tensor) -> Negatives:
    """Explicit bank rows: (K,) for all anchors, without those of an anchor's class, or (B, K) as they are.

    Raises:
        ValueError: they are not integers, or have another shape.
    """
    rows = as_index(torch.as_tensor(rows), index.device, sampler.num_samples, "negatives")
    if rows.ndim == 1:
        return _of_other_classes(sampler, rows, index)
    if rows.ndim != 2 or len(rows) != len(index):
        raise ValueError(f"negatives: expected shape (K,) or ({len(index)}, K); got {tuple(rows.shape)}")
    return Negatives(rows, None, index)


def _of_other_classes(sampler: NegativeSampler, rows: Tensor, index: Tensor) -> Negatives:
    return Negatives(rows, sampler.class_of(index)[:, None] == sampler.class_of(rows), index)


def negative_blocks(
    sampler: NegativeSampler, bank: Tensor, negatives: Negatives, width: int, kinds: int
) -> Iterator[NegativeBlock]:
    """The negatives from a bank (N, d), ``width`` rows at a time; those of a draw for each anchor (B, k, d) once for
    each of the ``kinds`` of anchors of an image.

    The whole bank passes as views, and no mask of it is ever held.
    """
    rows, excluded, anchors = negatives
    if rows is None:
        classes = sampler.class_of(anchors)[:, None]
        for start in range(0, len(bank), width):
            block = torch.arange(start, min(start + width, len(bank)), device=bank.device)
            yield bank[start : start + width], classes == sampler.class_of(block)
    elif rows.ndim == 1:
        assert excluded is not None
        for block, mask in zip(torch.split(rows, width), torch.split(excluded, width, dim=1), strict=True):
            yield bank.index_select(0, block), mask
    else:
        blocks = torch.split(rows, max(1, width // bank.shape[1]), dim=1)
        masks = None if excluded is None else torch.split(excluded, blocks[0].shape[1], dim=1)
        for number, block in enumerate(blocks):
            yield bank[block].repeat(kinds, 1, 1), None if masks is None else masks[number]
