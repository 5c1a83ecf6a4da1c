"""Similarity-preserving distillation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, NoConfig, Setup, Weights, methods
from hkd.methods.stages import pair_stages
from hkd.numerics.gather import gather
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.types import Batch, ModelOutput


def similarities(feature: Tensor) -> Tensor:
    """The inner products of a batch's maps with rows of unit length, (B, ...) -> (B, B)."""
    with full_precision(feature):
        flat = feature.flatten(1)
        return F.normalize(flat @ flat.T, dim=1)


@methods.register("sp")
class SP(Method[NoConfig]):
    r"""Tung et al., "Similarity-Preserving Knowledge Distillation", ICCV 2019.

    .. math:: \| \mathrm{rownorm}(S S^\top) - \mathrm{rownorm}(T T^\top) \|_F^2 \,/\, B^2

    S and T are the last stage maps, flattened to (B, c h w). β = 3000 is the RepDistiller benchmark's.
    """

    weights = Weights(method=3000.0)
    needs = frozenset({"features"})

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "sp")[-1:]

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = (similarities(gather(at_least_float32(out.features[-1]))) for out in (student, teacher))
        return {"similarity": (s - t).square().mean()}
