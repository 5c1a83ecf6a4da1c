"""Distillation with the reused teacher classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkd.errors import IncompatibleError
from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.cells import classifying, pooled_map
from hkd.methods.stages import to_same_size
from hkd.models.base import Model, evaluating
from hkd.models.names import Projection
from hkd.models.projected import ProjectedModel
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class ReuseConfig:
    """The settings of SimKD, as the authors'."""

    factor: int = option(2, "the teacher's width over that of the projector's bottleneck", ge=1, most=999)


@methods.register("simkd")
class SimKD(Method[ReuseConfig]):
    r"""Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022.

    .. math:: \frac{1}{B D h w} \sum \left( \varphi(F_s) - F_t \right)^2, \qquad
        l = W_t\, \mathrm{GAP}(\varphi(F_s)) + b_t

    F_s and F_t (B, D, h, w) are the maps that the networks average, the larger pooled to the size of the smaller; φ is
    the projector of :class:`hkd.models.projected.ProjectedModel`, and W_t, b_t the teacher's classifier, which stays as
    it is. The student is from the start, and remains, student, projector and teacher's classifier: that is the
    ``predictor``, so accuracies, parameters and exported files are of all three. The published loss has no other term,
    neither the labels' nor KD's.

    In a loop without :class:`hkd.Distiller`: train ``method.predictor`` in the student's place, and call
    ``method.begin()`` once the teacher has its weights.
    """

    Config = ReuseConfig
    settings = "simkd"
    weights = Weights(ce=0.0, kd=0.0, method=1.0)
    needs = frozenset({"features", "classifier"})

    def __init__(self, setup: Setup, config: ReuseConfig) -> None:
        super().__init__(setup, config)
        student, teacher = classifying(setup, "simkd")
        if setup.student.num_classes != setup.teacher.num_classes:
            raise IncompatibleError(
                f"method: simkd gives the student the teacher's classifier; {setup.teacher.name} has a "
                f"{setup.teacher.num_classes}-class head, {setup.student.name} a {setup.student.num_classes}-class head"
            )
        projection = Projection(setup.teacher.embedding_dim, _side(teacher, setup.teacher.image_size), config.factor)
        predictor = ProjectedModel(student, projection, setup.student.num_classes)
        self._predictors = (predictor.to(next(student.parameters()).device),)
        self.begin()

    def begin(self) -> None:
        """Takes over the teacher's classifier, as it is now."""
        assert self.networks is not None and isinstance(self.predictor, ProjectedModel)
        self.predictor.reuse(self.networks[1])

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        s, t = to_same_size(pooled_map(student), pooled_map(teacher))
        return {"reuse": F.mse_loss(at_least_float32(s), at_least_float32(t))}


def _side(network: Model, image_size: int) -> int:
    """Of the map that a network averages, in cells."""
    like = next(network.parameters())
    black = torch.zeros(1, 3, image_size, image_size, device=like.device, dtype=like.dtype)
    with torch.no_grad(), evaluating(network):
        return max(pooled_map(network(black)).shape[2:])
