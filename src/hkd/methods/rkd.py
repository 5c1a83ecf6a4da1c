"""Relational knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, methods
from hkd.numerics.gather import gather
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class RelationalConfig:
    """The settings of RKD: the weights of its two terms, as in the paper."""

    distance_weight: float = option(25.0, "weight of the distance term", ge=0)
    angle_weight: float = option(50.0, "weight of the angle term", ge=0)


def relative_distances(x: Tensor) -> Tensor:
    """Distances of all pairs over their mean, (B, D) -> (B, B)."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / (distance.sum() / (distance > 0).sum().clamp(min=1)).clamp(min=1e-12)


def angles(x: Tensor) -> Tensor:
    """The cosine of the angle that images i and k span at image j, (B, D) -> (B, B, B) with j first."""
    direction = F.normalize(x[None, :, :] - x[:, None, :], dim=2)
    return direction @ direction.transpose(1, 2)


@methods.register("rkd")
class RKD(Method[RelationalConfig]):
    r"""Park et al., "Relational Knowledge Distillation", CVPR 2019.

    .. math:: 25 \cdot \mathrm{Huber}\Big(\frac{d(s_i, s_j)}{\mu_s}, \frac{d(t_i, t_j)}{\mu_t}\Big)
        + 50 \cdot \mathrm{Huber}(\angle s_i s_j s_k,\, \angle t_i t_j t_k)

    of the embeddings (B, D) that enter the classifiers; d is the Euclidean distance, μ its mean over the pairs whose
    distance is not 0, and both terms are means over all pairs and triples. The weights 25 and 50 are the paper's; the
    terms include them, and β = 1.
    """

    Config = RelationalConfig
    settings = "rkd"
    needs = frozenset({"embedding"})

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = (gather(at_least_float32(out.embedding)) for out in (student, teacher))
        with full_precision(s):
            distance = F.smooth_l1_loss(relative_distances(s), relative_distances(t))
            angle = F.smooth_l1_loss(angles(s), angles(t))
        return {"distance": self.config.distance_weight * distance, "angle": self.config.angle_weight * angle}
