"""Knowledge review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.stages import channels, pair_stages, summed
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ReviewConfig:
    """The settings of ReviewKD, as the authors'."""

    widest: int = option(512, "largest width of the fused maps", ge=1, most=65_536)
    warmup_epochs: int = option(20, "epochs over which the weight rises to β", ge=0)


class AttentionFusion(nn.Module):
    """Fuses a stage's map with the fused map of the deeper stages, by an attention over the two at each position."""

    def __init__(self, inwards: int, mid: int, outwards: int, *, fuse: bool) -> None:
        super().__init__()
        narrow = nn.Conv2d(inwards, mid, 1, bias=False)
        widen = nn.Conv2d(mid, outwards, 3, padding=1, bias=False)
        for convolution in (narrow, widen):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.inner = nn.Sequential(narrow, nn.BatchNorm2d(mid))
        self.outer = nn.Sequential(widen, nn.BatchNorm2d(outwards))
        self.attention = nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, feature: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher's, at its size, and the fused one for the next shallower stage."""
        fused = self.inner(feature)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, fused.shape[2:])
            of_stage, of_deeper = self.attention(torch.cat([fused, deeper], dim=1)).split(1, dim=1)
            fused = fused * of_stage + deeper * of_deeper
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size)
        return self.outer(fused), fused


def hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The weighted mean of mean squared errors of two maps (B, c, h, w), as they are and pooled to 4x4, 2x2 and 1x1.

    Weights are 1, 1/2, 1/4, ... of the levels that are smaller than the map.
    """
    weight, weights, terms = 1.0, 1.0, [F.mse_loss(student, teacher)]
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weight /= 2
            weights += weight
            s, t = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
            terms.append(weight * F.mse_loss(s, t))
    return summed(terms) / weights


@methods.register("reviewkd")
class ReviewKD(Method[ReviewConfig]):
    r"""Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.

    .. math:: \sum_l \mathrm{HCL}(\mathrm{ABF}_l(F_s^l, R^{l+1}),\, F_t^l)

    The student's stage maps (B, c, h, w) and its embedding, as a map of 1x1, are visited from deep to shallow; each is
    fused with the fused map R of the deeper ones (:class:`AttentionFusion`), brought to the teacher's width and size,
    and compared with the teacher's map before its ReLU, where that is known (:func:`hierarchical_distance`). The
    warm-up of 20 epochs is the authors', as is β = 5, for resnet32x4 -> resnet8x4 (.6 to 8 for other pairs).
    """

    Config = ReviewConfig
    settings = "reviewkd"
    weights = Weights(method=5.0)
    needs = frozenset({"embedding", "features", "preactivations"})

    def __init__(self, setup: Setup, config: ReviewConfig) -> None:
        super().__init__(setup, config)
        self.warmup_epochs = config.warmup_epochs
        self.pairs = pair_stages(setup, "reviewkd")
        widths = [channels(setup, pair) for pair in self.pairs]
        widths.append((setup.student.embedding_dim, setup.teacher.embedding_dim))
        mid = min(config.widest, setup.student.embedding_dim)
        self.fusions = nn.ModuleList(
            AttentionFusion(s, mid, t, fuse=depth < len(widths) - 1) for depth, (s, t) in enumerate(widths)
        )

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        maps_t = teacher.preactivations or teacher.features
        maps_s = [*(student.features[s] for s, _ in self.pairs), student.embedding[:, :, None, None]]
        goals = [*(maps_t[t] for _, t in self.pairs), teacher.embedding[:, :, None, None]]
        terms, fused = [], None
        for fusion, feature, goal in reversed(list(zip(self.fusions, maps_s, goals, strict=True))):
            compared, fused = fusion(feature, fused, goal.shape[2:])
            terms.append(hierarchical_distance(at_least_float32(compared), at_least_float32(goal)))
        return {"review": summed(terms)}
