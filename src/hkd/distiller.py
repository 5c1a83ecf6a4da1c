"""What a step minimises."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Initialisation, Method, Weights
from hkd.methods.kd import kd_loss
from hkd.models.base import CifarModel, Model
from hkd.types import Batch, ModelOutput

LABELS_ALONE = Weights(ce=1.0, kd=0.0, method=0.0)


class Step(NamedTuple):
    """What a batch gives: the scalar to minimise, its unweighted terms, and the student's logits where it was run."""

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


class Objective(nn.Module):
    r"""The student, the method, and the weighted sum of what they are trained for.

    .. math:: \gamma\, \mathrm{CE}(l_s, y) + \alpha\, T^2\, \mathrm{KL} + \beta \sum \text{method's terms}

    One module, so that several processes wrap student and method as one. What has weight 0 is not computed,
    but for the cross-entropy, which is always worth logging.

    Args:
        student: the network to train.
        method: how to learn from the teacher; None to learn from labels alone.
        weights: γ, α, β.
        kd_temperature: T.
    """

    def __init__(
        self,
        student: Model,
        method: Method[Any] | None = None,
        weights: Weights = LABELS_ALONE,
        kd_temperature: float = 4.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.weights = weights
        self.kd_temperature = kd_temperature
        self._warmth = 1.0

    @property
    def initialisation(self) -> Initialisation | None:
        """The method's stage before the training."""
        found = None if self.method is None else self.method.initialisation
        return found if found is not None and found.epochs else None

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every step does: not in a stage of its own, nor with weight 0; and who knows of foreign networks."""
        idle = self.initialisation is not None or (self.method is not None and not self.weights.method)
        return not idle and isinstance(self.student, CifarModel)

    @property
    def needs_teacher(self) -> bool:
        """Whether the training, after an initialisation, looks at the teacher."""
        return self.method is not None and bool(self.weights.kd or self.weights.method)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the method's weight for an epoch of the training, counted from 0."""
        warmup = 0 if self.method is None else self.method.warmup_epochs
        self._warmth = min(1.0, (epoch + 1) / warmup) if warmup else 1.0

    def forward(self, batch: Batch, teacher: ModelOutput | None, initialising: bool = False) -> Step:
        """What to minimise in a step of the training, or of the method's initialisation."""
        if initialising:
            stage = self.initialisation
            assert stage is not None and teacher is not None
            terms = stage(batch, self.student(batch.image) if stage.with_student else None, teacher)
            return Step(torch.stack(list(terms.values())).sum(), terms, None)
        weights = self.weights
        student: ModelOutput = self.student(batch.image)
        logits = student.logits.float()
        terms = {"ce": F.cross_entropy(logits, batch.label)}
        total = weights.ce * terms["ce"]
        if teacher is not None and weights.kd:
            terms["kd"] = kd_loss(logits, teacher.logits, self.kd_temperature)
            total = total + weights.kd * terms["kd"]
        if teacher is not None and self.method is not None and weights.method:
            own: dict[str, Tensor] = self.method(batch, student, teacher)
            total = total + self._warmth * weights.method * sum(own.values())
            terms |= own
        return Step(total, terms, logits)
