"""Attention transfer."""

from __future__ import annotations

from torch import Tensor

from hkd.methods.base import Method, NoConfig, Setup, Weights, methods
from hkd.methods.stages import attention, pair_stages, paired_maps, summed
from hkd.types import Batch, ModelOutput


@methods.register("at")
class AT(Method[NoConfig]):
    r"""Zagoruyko et al., "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
    Networks via Attention Transfer", ICLR 2017.

    .. math:: \sum_{\text{stages}} \mathrm{mean}\,
        \big(n(\mathrm{mean}_c\, F_s^2) - n(\mathrm{mean}_c\, F_t^2)\big)^2, \qquad n(x) = x / \|x\|_2

    over images and positions of each pair of stage maps (B, c, h, w), brought to the smaller resolution. β = 1000 is
    the RepDistiller benchmark's.
    """

    weights = Weights(method=1000.0)
    needs = frozenset({"features"})

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "at")

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        maps = paired_maps(self.pairs, student, teacher)
        return {"attention": summed([(attention(s) - attention(t)).square().mean() for s, t in maps])}
