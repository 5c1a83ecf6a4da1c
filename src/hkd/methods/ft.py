"""Factor transfer."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Initialisation, Method, Setup, Weights, methods
from hkd.methods.stages import attention, pair_stages, to_same_size
from hkd.options import option
from hkd.types import Batch, ModelOutput

SMALL_NETWORKS = re.compile(r"resnet\d+(x4)?|wrn_\d+_\d+")
"""Names of the CIFAR ResNet and WRN families, without ResNet50."""


@dataclass(frozen=True)
class FactorConfig:
    """The settings of FT. Ratio and epochs are the benchmark's."""

    ratio: float = option(0.5, "width of a factor, as a part of the teacher's last stage map's", gt=0, le=1)
    init_epochs: int = option(30, "epochs in which the paraphraser learns to reconstruct", ge=0)
    init_lr: float | None = option(
        None, "learning rate of that stage [.01 for CIFAR ResNet and WRN students, else the run's]", gt=0
    )


def usual_lr(student: str) -> float | None:
    """The benchmark's learning rate of the initialisation, by the student's name; None is the run's."""
    return 0.01 if SMALL_NETWORKS.fullmatch(student) else None


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

    .. math:: \mathrm{mean}\; | n(q(F_s)) - n(q(F_t)) |, \qquad q(F) = \mathrm{mean}_c\, F^2,\quad n(x) = x / \|x\|_2

    over images and positions, p = 1. The factor F_t (B, k, h, w) is the code of the teacher's last stage map by the
    paraphraser, an auto-encoder; F_s is that of the student's by the translator, in the same width k; the larger is
    average-pooled to the resolution of the smaller. The form and β = 200 are the RepDistiller benchmark's. (The paper
    has the unit vector of the whole factor, whose term at that weight is many times smaller.)

    An initialisation of 30 epochs trains the paraphraser to reconstruct the teacher's map; afterwards it is fixed. Its
    learning rate is the benchmark's: .01 for students of the CIFAR ResNet and WRN families, else the run's own.
    """

    Config = FactorConfig
    settings = "ft"
    weights = Weights(method=200.0)
    needs = frozenset({"features"})
    revision = 2  # 1 compared unit vectors of whole factors
    always_trains_all = False  # the paraphraser is trained in the initialisation alone

    def __init__(self, setup: Setup, config: FactorConfig) -> None:
        super().__init__(setup, config)
        self.pairs = pair_stages(setup, "ft")[-1:]
        student, teacher = setup.student.stages[-1][0], setup.teacher.stages[-1][0]
        width = max(1, int(config.ratio * teacher))
        self.paraphraser = Paraphraser(teacher, width)
        self.translator = factor_layers(student, width, normalise=True)
        self.initialisation = Initialisation(
            config.init_epochs,
            self.reconstruction,
            with_student=False,
            lr=config.init_lr or usual_lr(setup.student.name),
        )

    def reconstruction(self, batch: Batch, teacher: ModelOutput) -> dict[str, Tensor]:
        """The term of the initialisation: the mean squared error of the paraphraser."""
        feature = teacher.features[-1]
        return {"reconstruction": F.mse_loss(self.paraphraser(feature).float(), feature.float())}

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        with torch.no_grad():
            factor_t = self.paraphraser.encoder(teacher.features[-1])
        factor_s, factor_t = to_same_size(self.translator(student.features[-1]), factor_t)
        return {"factor": F.l1_loss(attention(factor_s), attention(factor_t))}
