"""Log probabilities of some of the classes, finite where a softmax is saturated."""

import torch
from torch import Tensor

HIDDEN = -1e9
"""The logit of a class that is left out: its probability is 0, and 0 times its log is 0, not NaN."""


def is_class(logits: Tensor, label: Tensor) -> Tensor:
    """Where an image's class is: (B, C) logits and (B,) classes give (B, C) bool."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, label[:, None], True)


def log_softmax_without(logits: Tensor, hidden: Tensor) -> Tensor:
    """The log softmax over the classes that are not hidden; if all are, it is constant and has no gradient.

    Args:
        logits: (B, C).
        hidden: (B, C) bool.
    """
    return logits.masked_fill(hidden, HIDDEN).log_softmax(dim=1)


def log_binary(logits: Tensor, label: Tensor) -> Tensor:
    """The logs of (p_y, 1 - p_y), where 1 - p_y is the sum of the other classes: (B, C) and (B,) give (B, 2)."""
    log_p = logits.log_softmax(dim=1)
    rest = log_p.masked_fill(is_class(logits, label), HIDDEN).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p.gather(1, label[:, None]), rest], dim=1)
