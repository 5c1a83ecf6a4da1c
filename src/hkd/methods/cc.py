"""Correlation congruence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, check_unused, methods
from hkd.numerics.gather import gather
from hkd.numerics.precision import full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput

RBF_WEIGHT = 20.0
"""β of the paper's kernel; see :class:`CC`."""


@dataclass(frozen=True)
class CorrelationConfig:
    """The settings of CC. Kernel and width are the benchmark's, bandwidth and order the paper's."""

    kernel: Literal["adjacent", "rbf"] = option("adjacent", "the benchmark's adjacent pairs, or rbf (the paper)")
    gamma: float = option(0.4, "bandwidth of the Gaussian kernel", gt=0)
    order: int = option(2, "order of its Taylor series", ge=1, most=100)
    embedding_dim: int = option(128, "d, width of both linear embeddings", ge=1, most=65_536)


def gaussian_correlations(embedding: Tensor, gamma: float, order: int) -> Tensor:
    r"""The Gaussian kernel between all pairs of a batch by its Taylor series, (B, d) -> (B, B).

    .. math:: e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} (\hat x_i^\top \hat x_j)^p, \quad \hat x = x / \|x\|_2
    """
    unit = F.normalize(embedding, dim=1)
    cosine = unit @ unit.T
    series = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(dim=0)


@methods.register("cc")
class CC(Method[CorrelationConfig]):
    r"""Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.

    .. math:: \mathrm{mean}_i\, |W_s f_s - W_t f_t|_i^\top\, |W_s f_s - W_t f_t|_{i+1}

    f are the embeddings (B, D) that enter the classifiers, W trained linear embeddings to width d. This is the form of
    the RepDistiller benchmark, to which its β = .02 belongs. ``kernel="rbf"`` is the paper's,

    .. math:: \| C(W_s f_s) - C(W_t f_t) \|_F^2 \,/\, B^2

    with the :func:`gaussian_correlations` C of a batch. Its own β is 20: with fresh embeddings W its gradient reaches
    that of the adjacent pairs at a weight between 8 and 38, in four measurements on digits (resnet20, wrn_16_2 ->
    resnet8; resnet8x4 -> vgg8). Both embeddings are trained, and come to agree sooner under this kernel:
    `python -m benchmarks strength` has the ratios after an epoch.
    """

    Config = CorrelationConfig
    settings = "cc"
    weights = Weights(method=0.02)
    needs = frozenset({"embedding"})
    revision = 2  # 1 had the paper's kernel by default, with the weight of the other

    @classmethod
    def default_weights(cls, config: CorrelationConfig) -> Weights:
        return cls.weights if config.kernel == "adjacent" else Weights(method=RBF_WEIGHT)

    def __init__(self, setup: Setup, config: CorrelationConfig) -> None:
        super().__init__(setup, config)
        if config.kernel == "adjacent":
            check_unused(config, ("gamma", "order"), "kernel adjacent")
        self.embed_student = nn.Linear(setup.student.embedding_dim, config.embedding_dim)
        self.embed_teacher = nn.Linear(setup.teacher.embedding_dim, config.embedding_dim)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        with full_precision(student.embedding):
            dtype = self.embed_student.weight.dtype
            s = gather(self.embed_student(student.embedding.to(dtype)))
            t = gather(self.embed_teacher(teacher.embedding.to(dtype)))
            if self.config.kernel == "adjacent":
                delta = (s - t).abs()
                # A batch of one has no adjacent pair: its sum over none is 0.
                return {"correlation": (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)}
            c_s, c_t = (gaussian_correlations(e, self.config.gamma, self.config.order) for e in (s, t))
            return {"correlation": (c_s - c_t).square().mean()}
