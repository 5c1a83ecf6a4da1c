"""Classes of different sizes: how often their images are shown, or how much each counts."""

from __future__ import annotations

import torch
from torch import Tensor

REPEATED = 2**40
"""Added to the row of an image for each time that an epoch has shown it before, where its view is drawn: more than
there are rows, so that the views are others."""


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """An epoch in which every class is shown equally often, up to one image.

    Images of a class are shown in turn: each once, in random order, before one is shown again. So of a large class a
    random part is shown, and of a small one every image several times. Images without a label are shown once.

    Args:
        labels: (N,) classes, -1 for none.
        generator: of the draws, on the CPU.

    Returns:
        (N,) positions in random order.
    """
    unlabelled, sizes = int((labels < 0).sum()), torch.bincount(labels[labels >= 0])
    by_class = labels.argsort(stable=True)
    shown, classes = [by_class[:unlabelled]], torch.split(by_class[unlabelled:], sizes[sizes > 0].tolist())
    if len(labels) > unlabelled:
        each, more = divmod(len(labels) - unlabelled, len(classes))
        lucky = set(torch.randperm(len(classes), generator=generator)[:more].tolist())
        for number, members in enumerate(classes):
            count = each + (number in lucky)
            turns = [torch.randperm(len(members), generator=generator) for _ in range(-(-count // len(members)))]
            shown.append(members[torch.cat(turns)[:count]] if turns else members[:0])
    order = torch.cat(shown)
    return order[torch.randperm(len(order), generator=generator)]


def times_before(order: Tensor) -> Tensor:
    """How often each entry of an epoch's order was shown before in it: (N,) int64."""
    by_image = order.sort(stable=True)
    first = torch.searchsorted(by_image.values, by_image.values)
    return torch.empty_like(order).scatter_(0, by_image.indices, torch.arange(len(order)) - first)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    r"""By how much the cross-entropy of a class's images is multiplied, so that all classes count alike.

    .. math:: w_c = \frac{n}{C' n_c}

    with n images that have a label, n_c of them in class c, and C' classes that have an image: the mean of w over the
    images is 1. A class without images has weight 1.

    Args:
        labels: (N,) classes, -1 for none.
        classes: C.

    Returns:
        (C,) float32.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes).double()
    present = (counts > 0).sum().clamp(min=1)
    weights = counts.sum() / (present * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 1.0).float()
