"""Distillation from a stronger teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.numerics.gather import gather
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class DistConfig:
    """The settings of DIST. The temperature is the paper's for CIFAR-100."""

    temperature: float = option(4.0, "T (the paper: 4 on CIFAR-100, 1 on ImageNet)", gt=0)


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - the Pearson correlation of each row with its counterpart, the mean: (R, n) and (R, n) -> scalar."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=1).mean()


@methods.register("dist")
class DIST(Method[DistConfig]):
    r"""Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.

    .. math:: T^2\, \mathrm{mean}_b\, (1 - \rho(p^s_{b:}, p^t_{b:}))
        + T^2\, \mathrm{mean}_c\, (1 - \rho(p^s_{:c}, p^t_{:c})), \qquad p = \mathrm{softmax}(l / T)

    ρ is Pearson's correlation, of each image's probabilities over classes (inter) and of each class's over the batch
    (intra). The paper weighs both with 2, which is β here.
    """

    Config = DistConfig
    settings = "dist"
    weights = Weights(method=2.0)
    needs = frozenset({"logits"})
    takes_mixed = True

    def __init__(self, setup: Setup, config: DistConfig) -> None:
        super().__init__(setup, config)
        self.temperature = config.temperature

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = (gather((at_least_float32(o.logits) / self.temperature).softmax(dim=1)) for o in (student, teacher))
        scale = self.temperature**2
        return {"inter": scale * pearson_distance(s, t), "intra": scale * pearson_distance(s.T, t.T)}
