"""Probabilistic knowledge transfer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, NoConfig, Weights, methods
from hkd.numerics.gather import gather
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.types import Batch, ModelOutput


def neighbour_probabilities(embedding: Tensor) -> Tensor:
    """The probability that one image picks another, (cosine + 1) / 2 with rows summing to 1: (B, D) -> (B, B)."""
    unit = F.normalize(embedding, dim=1)
    similarity = (unit @ unit.T + 1) / 2
    # Opposite images have probability 0, up to a rounding that must not become negative.
    return (similarity / similarity.sum(dim=1, keepdim=True)).clamp(min=1e-7)


@methods.register("pkt")
class PKT(Method[NoConfig]):
    r"""Passalis et al., "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.

    .. math:: \mathrm{mean}_{ij}\; q_{ij} \log \frac{q_{ij}}{p_{ij}}

    p and q are the :func:`neighbour_probabilities` of the student's and the teacher's embeddings (B, D) that enter the
    classifiers. β = 30000 is the RepDistiller benchmark's.
    """

    weights = Weights(method=30000.0)
    needs = frozenset({"embedding"})

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = (gather(at_least_float32(out.embedding)) for out in (student, teacher))
        with full_precision(s):
            p, q = neighbour_probabilities(s), neighbour_probabilities(t)
            return {"probabilities": (q * (q.log() - p.log())).mean()}
