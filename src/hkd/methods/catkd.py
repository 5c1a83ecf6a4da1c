"""Distillation of class activation maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.cells import cell_logits, classifying, pooled_map
from hkd.models.base import Model
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class ActivationConfig:
    """The settings of CAT-KD, as the authors' for resnet32x4 -> resnet8x4."""

    resolution: int = option(2, "side of the maps that are compared (the authors: 4 for ShuffleNets)", ge=1, most=1024)
    normalise: bool = option(False, "give each class's map the norm 1 (the authors: between families)")


@methods.register("catkd")
class CATKD(Method[ActivationConfig]):
    r"""Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023.

    .. math:: \frac{1}{B C r^2} \sum \left( A^s - A^t \right)^2, \qquad A = \mathrm{pool}_{r \times r}(W F)

    F (B, D, h, w) is the map that a network averages and W (C, D) its classifier's weights, without the bias, so that A
    (B, C, r, r) are its class activation maps, averaged to r x r cells: r = 2. With ``normalise`` each (r, r) map is
    divided by its Euclidean norm. β = 15 is the authors' for resnet32x4 -> resnet8x4 without ``normalise``; with it
    they have 15 to 80, and 600 for resnet32x4 -> ShuffleNets.
    """

    Config = ActivationConfig
    settings = "catkd"
    weights = Weights(method=15.0)
    needs = frozenset({"features", "classifier"})

    def __init__(self, setup: Setup, config: ActivationConfig) -> None:
        super().__init__(setup, config)
        self.both = classifying(setup, "catkd")  # in a tuple: they are no parts of the method

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = (self._maps(network, out) for network, out in zip(self.both, (student, teacher), strict=True))
        return {"activation": F.mse_loss(s, t.detach())}  # a teacher's classifier that is not frozen would learn

    def _maps(self, network: Model, output: ModelOutput) -> Tensor:
        """(r r, B, C): averaging before the linear layer is averaging behind it."""
        cells = F.adaptive_avg_pool2d(at_least_float32(pooled_map(output)), self.config.resolution)
        bias = cell_logits(network, torch.zeros_like(cells[:1, :, :1, :1]))
        maps = at_least_float32(cell_logits(network, cells)) - at_least_float32(bias)
        return F.normalize(maps, dim=0) if self.config.normalise else maps
