"""Streamlined knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hkd.methods.base import Method, Weights, methods
from hkd.methods.kd import kd_loss
from hkd.methods.mlkd import not_above_the_median
from hkd.numerics.gather import gather
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput

TINY = 1e-12
"""Added under the root, whose gradient at 0 is infinite."""
SHORTEST = 1e-4
"""The smallest length of a row of logits by which it is divided."""


@dataclass(frozen=True)
class StreamlinedConfig:
    """The settings of SKD, those of the authors' code."""

    temperature: float = option(4.0, "T of the instance term (the authors: 4 on CIFAR-100, 1 on ImageNet)", gt=0)
    shrinkage: float = option(0.1, "λ, added to the diagonal of the covariance", gt=0)
    divide: bool = option(True, "whether similarities are divided by the number of classes, as the authors' code does")
    mask: bool = option(True, "whether terms are multiplied by the part of images and classes that the code masks")


def similarities(logits: Tensor) -> Tensor:
    """Cosines between the logits of the images of a batch: (B, C) gives (B, B). Rows of zeros stay zeros."""
    squares = logits.square().sum(dim=1, keepdim=True)
    unit = logits / squares.where(squares > SHORTEST**2, 1.0).sqrt()
    return unit @ unit.T


def mahalanobis(difference: Tensor, shrinkage: float) -> Tensor:
    r"""The mean length of the rows of a matrix, (B, n), in the metric of their covariance, a scalar.

    .. math:: \mathrm{mean}_i \sqrt{D_i^\top \Sigma^{-1} D_i}, \qquad \Sigma = \mathrm{cov}(D) + \lambda I
    """
    rest = difference - difference.mean(dim=0)
    covariance = rest.T @ rest / max(len(rest) - 1, 1)
    metric = covariance + shrinkage * torch.eye(len(covariance), dtype=rest.dtype, device=rest.device)
    # λ > 0 makes it positive definite; cholesky() would wait for the device to say so.
    factor = torch.linalg.cholesky_ex(metric).L
    whitened = torch.linalg.solve_triangular(factor, difference.T, upper=False)
    length: Tensor = (whitened.square().sum(dim=0) + TINY).sqrt()
    return length.mean()


@methods.register("skd")
class SKD(Method[StreamlinedConfig]):
    r"""Jeong et al., "Streamlined Knowledge Distillation", CVPR 2026.

    .. math:: m_b\, T^2\, \mathrm{mean}_b\, \mathrm{KL}(\mathrm{softmax}(l_t / T) \,\|\, \mathrm{softmax}(l_s / T))
        + m_c\, \mathrm{mean}_i \sqrt{D_i^\top \Sigma^{-1} D_i}

    with D the difference of the two networks' cosines between the logits of the images of the batch, (B, B), and
    Σ = cov(D) + λ I, through which the gradient passes, too.

    The authors' code divides the cosines by C, which leaves little of the second term: with 100 classes its gradient is
    some thousandths of the cross-entropy's, and tenths without (``skd.divide``). It also reduces both terms before it
    masks them, so that they are multiplied by constants near .5: m_b is the part of the images of which the teacher is
    no surer than of the median one, m_c the part of the classes with no more probability in the batch than the median
    class (``skd.mask``). .1 CE + .9 of both terms are the defaults of that code, which trains on a weak and a strong
    view of every image; here all methods see the same images.
    """

    Config = StreamlinedConfig
    settings = "skd"
    weights = Weights(ce=0.1, method=0.9)
    needs = frozenset({"logits"})
    takes_mixed = True

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = (gather(at_least_float32(o.logits)) for o in (student, teacher))
        instance = kd_loss(s, t, self.config.temperature)
        with full_precision(s):
            difference = similarities(s) - similarities(t)
            if self.config.divide:
                difference = difference / s.shape[1]
            relation = mahalanobis(difference, self.config.shrinkage)
            if self.config.mask:
                p = t.softmax(dim=1)
                instance = instance * not_above_the_median(p.amax(dim=1))
                relation = relation * not_above_the_median(p.sum(dim=0))
        return {"instance": instance, "relation": relation}
