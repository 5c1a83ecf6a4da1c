"""Neuron selectivity transfer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, NoConfig, Setup, Weights, methods
from hkd.methods.stages import pair_stages, paired_maps, summed
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.types import Batch, ModelOutput


def kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    """The mean of k(x, y) = ⟨x, y⟩² over images and pairs of channels, (B, c, n) and (B, c', n) -> scalar."""
    return (a @ b.transpose(1, 2)).square().mean()


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two maps' channels, each a unit vector over positions."""
    s, t = (F.normalize(at_least_float32(x).flatten(2), dim=2) for x in (student, teacher))
    with full_precision(s):
        return kernel_mean(t, t) + kernel_mean(s, s) - 2 * kernel_mean(s, t)


@methods.register("nst")
class NST(Method[NoConfig]):
    r"""Huang et al., "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.

    .. math:: \sum_{\text{stages}} \mathrm{mean}\,k(t, t') + \mathrm{mean}\,k(s, s') - 2\,\mathrm{mean}\,k(s, t),
        \qquad k(a, b) = \langle a, b \rangle^2

    s and t are the channels of each pair of stage maps (B, c, h, w) at the smaller of both resolutions, each a unit
    vector over positions; means are over images and pairs of channels, so widths may differ. β = 50 is the RepDistiller
    benchmark's.
    """

    weights = Weights(method=50.0)
    needs = frozenset({"features"})

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "nst")

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        maps = paired_maps(self.pairs, student, teacher)
        return {"selectivity": summed([discrepancy(s, t) for s, t in maps])}
