"""InfoNCE, computed without ever holding the similarities to all negatives."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hkd.numerics.precision import at_least_float32, full_precision

# Similarities held at a time: 2**18 floats stay in a CPU core's cache, 2**25 fill any GPU.
_SIMILARITIES_AT_ONCE = {"cpu": 2**18}
_SIMILARITIES_AT_ONCE_ELSEWHERE = 2**25

NegativeBlock = tuple[Tensor, Tensor | None]
"""Some negatives, (k, d) for all anchors or (A, k, d) for each, and a mask that is True where one is no negative of an
anchor: (A', k) where A' divides A, so that it may serve several groups of anchors; or None."""


def info_nce(
    anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    r"""InfoNCE, the mean over its anchors of

    .. math:: -\log \frac{\exp(a \cdot p / \tau)}{\exp(a \cdot p / \tau) + \sum_j \exp(a \cdot n_j / \tau)}

    Gradients reach the anchors and the positives. Negatives are constants, as the rows of a memory bank are.

    Args:
        anchor: (A, d).
        positive: (A, d), one for each anchor.
        negatives: (K, d) for all anchors, or (A, K, d) for each.
        temperature: τ, above 0.
        mask: (A, K) boolean, True where a row is no negative of an anchor; None where all rows are.

    Returns:
        A scalar, at least float32 whatever the inputs and whether or not autocast is on.

    Raises:
        ValueError: there is no anchor, the temperature is not a finite number above 0, or the negatives require a
            gradient.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; equation 9 of Zhou
    et al., ICCV 2021.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number above 0; got {temperature}")
    if len(anchor) == 0:
        raise ValueError("anchor: expected at least one; got none")
    if negatives.requires_grad:
        raise ValueError("negatives: no gradient is computed for negatives; pass negatives.detach()")
    anchor, positive, negatives = at_least_float32(anchor), at_least_float32(positive), at_least_float32(negatives)
    width = rows_per_block(anchor)
    pieces = torch.split(negatives, width, dim=-2)
    masks = [None] * len(pieces) if mask is None else torch.split(mask, width, dim=-1)
    with full_precision(anchor):
        return contrast(anchor, positive, zip(pieces, masks, strict=True), temperature).mean()


def rows_per_block(anchor: Tensor) -> int:
    """How many negatives to contrast with these anchors at a time."""
    similarities = _SIMILARITIES_AT_ONCE.get(anchor.device.type, _SIMILARITIES_AT_ONCE_ELSEWHERE)
    return max(1, similarities // max(1, len(anchor)))


def contrast(
    anchor: Tensor, positive: Tensor, blocks: Iterable[NegativeBlock], temperature: float,
    products: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """InfoNCE of each anchor, (A,), over negatives that arrive block by block. See :func:`info_nce`.

    Args:
        products: type of the factors of the two products with the negatives, bfloat16 or (None) that of the anchors.
            Similarities, exponentials and sums have the type of the anchors.
    """
    loss: Tensor = _BlockwiseInfoNCE.apply(anchor, positive, iter(blocks), temperature, products or anchor.dtype)
    return loss


class _BlockwiseInfoNCE(torch.autograd.Function):
    r"""The loss and its gradient in one pass over the negatives.

    With :math:`s_0 = a \cdot p / \tau`, :math:`s_j = a \cdot n_j / \tau` and :math:`Z = \sum_{j \ge 0} e^{s_j}`,

    .. math:: \ell = \log Z - s_0, \qquad
        \frac{\partial \ell}{\partial a} = \frac{1}{\tau} \Big( \frac{1}{Z} \sum_{j \ge 0} e^{s_j} n_j - p \Big), \qquad
        \frac{\partial \ell}{\partial p} = \frac{1}{\tau} \Big( \frac{e^{s_0}}{Z} - 1 \Big) a

    where :math:`n_0 = p`. The two sums run along with their common maximum, so that any number of negatives passes
    through a block of similarities that fits the cache, and only (A, d) numbers wait for the backward pass. (Milakov
    and Gimelshein, "Online normalizer calculation for softmax", 2018.)
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, positive: Tensor, blocks: Iterator[NegativeBlock], temperature: float,
        products: torch.dtype,
    ) -> Tensor:  # fmt: skip
        scaled = anchor / temperature
        factor = scaled.to(products)
        positive_similarity = (scaled * positive).sum(dim=1)
        highest = positive_similarity.clone()
        total = torch.ones_like(highest)  # Z and the sum of e^s n, both divided by e^highest
        weighted = positive.clone()
        for rows, mask in blocks:
            if rows.shape[-2] == 0:
                continue
            each = rows.ndim == 3
            negatives = rows.to(products)
            similarity = torch.einsum("ad,akd->ak", factor, negatives) if each else factor @ negatives.T
            similarity = similarity.to(scaled.dtype)
            if mask is not None:
                similarity.view(-1, *mask.shape).masked_fill_(mask, -torch.inf)
            new_highest = torch.maximum(highest, similarity.amax(dim=1))
            shrink = (highest - new_highest).exp_()
            exponential = similarity.sub_(new_highest[:, None]).exp_()
            total.mul_(shrink).add_(exponential.sum(dim=1))
            weighted.mul_(shrink[:, None])
            exponential = exponential.to(products)
            if each:
                weighted.add_(torch.einsum("ak,akd->ad", exponential, negatives))
            elif products == weighted.dtype:
                weighted.addmm_(exponential, negatives)
            else:
                weighted.add_(exponential @ negatives)
            highest = new_highest
        anchor_gradient = weighted.div_(total[:, None]).sub_(positive).div_(temperature)
        positive_gradient = ((positive_similarity - highest).exp_() / total - 1)[:, None] * scaled
        ctx.save_for_backward(anchor_gradient, positive_gradient)
        return highest + total.log() - positive_similarity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        anchor_gradient, positive_gradient = ctx.saved_tensors
        return gradient[:, None] * anchor_gradient, gradient[:, None] * positive_gradient, None, None, None
