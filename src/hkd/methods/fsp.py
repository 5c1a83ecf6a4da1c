"""Flow of the solution procedure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from hkd.errors import IncompatibleError
from hkd.methods.base import Initialisation, Method, Setup, Weights, methods
from hkd.methods.stages import channels, pair_stages, summed, to_same_size
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class FlowConfig:
    """The settings of FSP."""

    init_epochs: int = option(30, "epochs of the initialisation stage", ge=0)


def flow(shallow: Tensor, deep: Tensor) -> Tensor:
    """The Gram matrix of two maps over positions, (B, c, h, w) and (B, c', h', w') -> (B, c, c')."""
    a, b = (at_least_float32(x).flatten(2) for x in to_same_size(shallow, deep))
    with full_precision(a):
        return a @ b.transpose(1, 2) / a.shape[2]


@methods.register("fsp")
class FSP(Method[FlowConfig]):
    r"""Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
    CVPR 2017.

    .. math:: \sum_l \mathrm{mean}\, (G_s^l - G_t^l)^2, \qquad G^l = \frac{1}{h w} F^l (F^{l+1})^\top

    G (B, c, c') is the Gram matrix of two adjacent stage maps, stems included, at the smaller of their resolutions.
    Both networks need the same widths.

    Published as an initialisation of 30 epochs, after which the student learns from labels: β = 0.
    """

    Config = FlowConfig
    settings = "fsp"
    weights = Weights(method=0.0)
    needs = frozenset({"features"})

    def __init__(self, setup: Setup, config: FlowConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "fsp", stem=True, least=2)
        widths_s, widths_t = zip(*(channels(setup, pair) for pair in self.pairs), strict=True)
        if widths_s != widths_t:
            raise IncompatibleError(
                f"method: fsp compares Gram matrices, so stage maps need equal numbers of channels; "
                f"{setup.student.name} has {widths_s}, {setup.teacher.name} {widths_t}"
            )
        self.initialisation = Initialisation(config.init_epochs, self.forward)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        terms = []
        for (s, t), (s_next, t_next) in pairwise(self.pairs):
            flow_s = flow(student.features[s], student.features[s_next])
            flow_t = flow(teacher.features[t], teacher.features[t_next])
            terms.append((flow_s - flow_t).square().mean())
        return {"flow": summed(terms)}
