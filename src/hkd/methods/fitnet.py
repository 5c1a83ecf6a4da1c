"""Hints."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.stages import channels, pair_stages, paired_maps, regressor
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class FitNetConfig:
    """The settings of FitNet. The stage is the benchmark's."""

    stage: int = option(2, "which stage map of the student is compared; 0 is the stem's", ge=0, most=1_000)


@methods.register("fitnet")
class FitNet(Method[FitNetConfig]):
    r"""Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.

    .. math:: \mathrm{mean}\, (r(F_s) - F_t)^2

    F are the maps (B, c, h, w) of one stage at the smaller of both resolutions, r a trained regressor to the teacher's
    width: a 1x1 convolution, batch normalisation, ReLU. (The benchmark's strides where resolutions differ.) Where the
    networks have different numbers of stages, the teacher's map is the one as far from the deepest.
    β = 100 and the stage, ``features[2]``, are the RepDistiller benchmark's, which trains with the hint throughout.
    """

    Config = FitNetConfig
    settings = "fitnet"
    weights = Weights(method=100.0)
    needs = frozenset({"features"})

    def __init__(self, setup: Setup, config: FitNetConfig) -> None:
        super().__init__(setup, config)
        pairs = pair_stages(setup, "fitnet", stem=True)
        self.pairs = tuple(pair for pair in pairs if pair[0] == config.stage)
        if not self.pairs:
            raise ValueError(f"stage: expected one of {', '.join(str(s) for s, _ in pairs)}; got {config.stage}")
        self.regressor = regressor(*channels(setup, self.pairs[0]))

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        ((s, t),) = paired_maps(self.pairs, student, teacher)
        return {"hint": F.mse_loss(self.regressor(s).float(), t.float())}
