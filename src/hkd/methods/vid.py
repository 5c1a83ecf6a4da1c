"""Variational information distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Method, NoConfig, Setup, methods
from hkd.methods.stages import channels, pair_stages, paired_maps, summed
from hkd.numerics.precision import full_precision
from hkd.types import Batch, ModelOutput

INITIAL_VARIANCE, SMALLEST_VARIANCE = 5.0, 1e-5


class Gaussian(nn.Module):
    """The distribution of the teacher's map given the student's: a mean for each value, a variance for each channel."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False), nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False), nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
        )  # fmt: skip
        # σ² = softplus(scale) + the smallest
        scale = math.log(math.expm1(INITIAL_VARIANCE - SMALLEST_VARIANCE))
        self.scale = nn.Parameter(torch.full((teacher,), scale))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean of ½[(μ(s) - t)² / σ² + log σ²], a scalar."""
        mean = self.mean(student)
        with full_precision(student):
            variance = (F.softplus(self.scale) + SMALLEST_VARIANCE)[:, None, None]
            likelihood: Tensor = ((mean.to(variance.dtype) - teacher).square() / variance + variance.log()).mean() / 2
            return likelihood


@methods.register("vid")
class VID(Method[NoConfig]):
    r"""Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019.

    .. math:: \sum_{\text{stages}} \mathrm{mean}\; \tfrac12
        \Big[ \frac{(\mu(F_s) - F_t)^2}{\sigma^2} + \log \sigma^2 \Big]

    over all values of each pair of stage maps (B, c, h, w) at the smaller of both resolutions; μ is three trained 1x1
    convolutions to the teacher's width, σ² a trained variance for each of its channels, 5 at the start. β = 1.
    """

    needs = frozenset({"features"})

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "vid")
        self.gaussians = nn.ModuleList(Gaussian(*channels(setup, pair)) for pair in self.pairs)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        maps = paired_maps(self.pairs, student, teacher)
        return {"variational": summed([g(s, t) for g, (s, t) in zip(self.gaussians, maps, strict=True)])}
