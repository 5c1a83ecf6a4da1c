"""Factor transfer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Initialisation, Method, Setup, Weights, methods
from hkd.methods.stages import pair_stages, to_same_size, unit
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class FactorConfig:
    """The settings of FT. Ratio and epochs are the benchmark's."""

    ratio: float = option(0.5, "width of a factor, as a part of the teacher's last stage map's", gt=0, le=1)
    init_epochs: int = option(30, "epochs in which the paraphraser learns to reconstruct", ge=0)
    init_lr: float = option(0.01, "learning rate of that stage", gt=0)


def factor_layers(inwards: int, factor: int, *, normalise: bool) -> nn.Sequential:
    """Three 3x3 convolutions from a map to its factor."""
    layers: list[nn.Module] = []
    for a, b in ((inwards, inwards), (inwards, factor), (factor, factor)):
        layers += [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if normalise else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An auto-encoder of the teacher's last stage map; its code is the factor."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.encoder = factor_layers(width, factor, normalise=False)
        layers: list[nn.Module] = []
        for a, b in ((factor, factor), (factor, width), (width, width)):
            layers += [nn.ConvTranspose2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        """The reconstruction, of the map's shape (B, c, h, w)."""
        reconstruction: Tensor = self.decoder(self.encoder(feature))
        return reconstruction


@methods.register("ft")
class FT(Method[FactorConfig]):
    r"""Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.

    .. math:: \mathrm{mean}\; | n(Q_s) - n(Q_t) |, \qquad n(x) = x / \|x\|_2

    over the values of both factors, p = 1. Q_t is the code of the teacher's last stage map (B, c, h, w) by
    the paraphraser, an auto-encoder; Q_s that of the student's by the translator, in the same width and at the smaller
    of both resolutions. An initialisation of 30 epochs trains the paraphraser to reconstruct the teacher's map;
    afterwards it is fixed. β = 200 is the RepDistiller benchmark's, which compares channel means of squared factors
    instead: their unit vectors have fewer values, so that its term is some sqrt(c) times this one.
    """

    Config = FactorConfig
    settings = "ft"
    weights = Weights(method=200.0)
    needs = frozenset({"features"})
    always_trains_all = False  # the paraphraser is trained in the initialisation alone

    def __init__(self, setup: Setup, config: FactorConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "ft")[-1:]
        student, teacher = setup.student.stages[-1][0], setup.teacher.stages[-1][0]
        width = max(1, int(config.ratio * teacher))
        self.paraphraser = Paraphraser(teacher, width)
        self.translator = factor_layers(student, width, normalise=True)
        self.initialisation = Initialisation(
            config.init_epochs, self.reconstruction, with_student=False, lr=config.init_lr
        )

    def reconstruction(self, batch: Batch, teacher: ModelOutput) -> dict[str, Tensor]:
        """The term of the initialisation: the mean squared error of the paraphraser."""
        feature = teacher.features[-1]
        return {"reconstruction": F.mse_loss(self.paraphraser(feature).float(), feature.float())}

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        with torch.no_grad():
            factor_t = self.paraphraser.encoder(teacher.features[-1])
        factor_s, factor_t = to_same_size(self.translator(student.features[-1]), factor_t)
        return {"factor": F.l1_loss(unit(at_least_float32(factor_s)), unit(at_least_float32(factor_t)))}
