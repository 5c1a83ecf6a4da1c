"""Activation boundaries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hkd.methods.base import Initialisation, Method, Setup, Weights, methods
from hkd.methods.stages import channels, pair_stages, regressor, summed, to_same_size
from hkd.options import option
from hkd.types import Batch, ModelOutput

SCALE = 3 / 1000
"""Of the published loss, which sums over the thousands of values of an image."""


@dataclass(frozen=True)
class BoundaryConfig:
    """The settings of AB."""

    margin: float = option(1.0, "how far beyond the boundary a value is pushed", gt=0)
    init_epochs: int = option(30, "epochs of the initialisation stage", ge=0)


def hinge(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared hinges that push the student's values to the side of 0 on which the teacher's are, summed."""
    active = teacher > 0
    to_positive = (margin - student).clamp(min=0).square()
    to_negative = (margin + student).clamp(min=0).square()
    return to_positive.where(active, to_negative).sum()


@methods.register("ab")
class AB(Method[BoundaryConfig]):
    r"""Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019.

    .. math:: \frac{3}{1000\,B} \sum_{l=1}^{L} 2^{\,l - L} \sum
        \begin{cases} \max(0, m - r(P_s))^2 & P_t > 0 \\ \max(0, m + r(P_s))^2 & P_t \le 0 \end{cases}

    P are the stage maps (B, c, h, w) before their last ReLU, at the smaller of both resolutions; r is a trained 1x1
    convolution with batch normalisation, or nothing where the maps have one shape; the margin m is 1. For a network
    whose preactivations are not known the map after the ReLU serves: the student's as it is, of the teacher's whether a
    value is above 0, which at a smaller resolution is what most of its values are.

    Published as an initialisation of 30 epochs, after which the student learns from labels: β = 0.
    """

    Config = BoundaryConfig
    settings = "ab"
    weights = Weights(method=0.0)
    needs = frozenset({"features", "preactivations"})

    def __init__(self, setup: Setup, config: BoundaryConfig) -> None:
        super().__init__(setup, config)
        self.margin = config.margin
        self.pairs = pair_stages(setup, "ab")
        self.connectors = nn.ModuleList(
            nn.Identity()
            if setup.student.stages[s] == setup.teacher.stages[t]
            else regressor(*channels(setup, (s, t)), relu=False)
            for s, t in self.pairs
        )
        self.initialisation = Initialisation(config.init_epochs, self.forward)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        maps_s = student.preactivations or student.features
        maps_t = teacher.preactivations or [(map_ > 0).to(map_.dtype) - 0.5 for map_ in teacher.features]
        terms = []
        for depth, (connector, (s, t)) in enumerate(zip(self.connectors, self.pairs, strict=True), 1):
            a, b = to_same_size(maps_s[s], maps_t[t])
            weight = 2.0 ** (depth - len(self.pairs))
            terms.append(weight * hinge(connector(a).float(), b, self.margin))
        return {"boundary": SCALE * summed(terms) / len(batch.label)}
