"""Scale-decoupled distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, check_unused, methods
from hkd.methods.cells import cell_logits, classifying, pooled_map
from hkd.methods.dkd import decoupled
from hkd.methods.kd import divergence
from hkd.models.base import Model
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput

GRID = 4
"""Side of the map that all scales are averaged from."""
NONTARGET = 8.0


@dataclass(frozen=True)
class ScaleConfig:
    """The settings of SDD, as the authors' for networks of two families."""

    scales: tuple[int, ...] = option(
        (1, 2, 4), "sides of the grids of cells, ascending from 1 to at most 4 (the authors: 1 and 2 within a family)"
    )
    temperature: float = option(4.0, "T", gt=0)
    loss: Literal["kd", "dkd"] = option("kd", "what is asked of each cell")
    nontarget_weight: float = option(
        NONTARGET, "with loss dkd: weight of the term of the other classes (the authors: that of DKD, by pair)", ge=0
    )


def grids(pooled: Tensor, scales: tuple[int, ...]) -> list[Tensor]:
    """A map (B, D, h, w) averaged to 4x4 cells, and these to each scale: (B, D, m, m)."""
    finest = F.adaptive_avg_pool2d(at_least_float32(pooled), GRID)
    return [finest if scale == GRID else F.adaptive_avg_pool2d(finest, scale) for scale in scales]


@methods.register("sdd")
class SDD(Method[ScaleConfig]):
    r"""Wei et al., "Scale Decoupled Distillation", CVPR 2024.

    .. math:: \frac{1}{N B} \sum_{n, b} w_{nb}\, T^2\,
        \mathrm{KL}(\mathrm{softmax}(t_{nb} / T) \| \mathrm{softmax}(s_{nb} / T))

    t_nb and s_nb (C) are the logits that each network's own classifier gives to cell n of image b: the map that the
    network averages is averaged to 4x4 cells, and these to 2x2 and to the one global cell, N = 21 together. A cell has
    the weight w = 2 where the teacher is right of it and wrong of the global cell or the other way round, else 1;
    images without a label have 1. With ``loss`` dkd a cell's divergence is that of :class:`hkd.methods.dkd.DKD`, the
    mean over the images that have a label.

    The authors' weights are γ = .1 and β = .9 for kd; for dkd γ = 1, β = 1, 8 of the other classes, and a warm-up of 20
    epochs.
    """

    Config = ScaleConfig
    settings = "sdd"
    weights = Weights(ce=0.1, method=0.9)
    needs = frozenset({"features", "classifier"})

    def __init__(self, setup: Setup, config: ScaleConfig) -> None:
        super().__init__(setup, config)
        scales = config.scales
        if list(scales) != sorted(set(scales)) or not scales or scales[0] != 1 or scales[-1] > GRID:
            raise ValueError(f"scales: expected sides that ascend from 1 to at most {GRID}; got {list(scales)}")
        if config.loss == "kd":
            check_unused(config, ("nontarget_weight",), "loss kd")
        self.both = classifying(setup, "sdd")  # in a tuple: they are no parts of the method
        self.warmup_epochs = 20 if config.loss == "dkd" else 0

    @classmethod
    def default_weights(cls, config: ScaleConfig) -> Weights:
        return cls.weights if config.loss == "kd" else Weights()

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        config = self.config
        s, t = (self._logits(network, out) for network, out in zip(self.both, (student, teacher), strict=True))
        t = t.detach()  # the classifier of a teacher that is not frozen would learn
        cells, images, classes = t.shape
        right = t.argmax(dim=2) == batch.label
        weight = (1 + (right != right[0]).to(s.dtype)).flatten()
        s, t, scale = s.reshape(-1, classes), t.reshape(-1, classes), config.temperature**2 / cells
        if config.loss == "dkd":
            count = (batch.label >= 0).sum().clamp(min=1)
            target, nontarget = decoupled(s, t, batch.label.repeat(cells), config.temperature)
            return {
                "target": scale * ((weight * target).sum() / count),
                "nontarget": config.nontarget_weight * scale * ((weight * nontarget).sum() / count),
            }
        log_s, log_t = ((logits / config.temperature).log_softmax(dim=1) for logits in (s, t))
        return {"scales": scale * ((weight * divergence(log_s, log_t)).sum() / images)}

    def _logits(self, network: Model, output: ModelOutput) -> Tensor:
        """(N, B, C) of all cells, the global one first."""
        maps = grids(pooled_map(output), self.config.scales)
        return at_least_float32(torch.cat([cell_logits(network, cells) for cells in maps]))
