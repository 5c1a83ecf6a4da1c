"""What a step minimises."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hkd.methods.base import Method, Weights
from hkd.methods.kd import kd_loss
from hkd.models.base import Model
from hkd.types import Batch, ModelOutput

LABELS_ALONE = Weights(ce=1.0, kd=0.0, method=0.0)


class Objective(nn.Module):
    r"""The student, the method, and the weighted sum of what they are trained for.

    .. math:: \gamma\, \mathrm{CE}(l_s, y) + \alpha\, T^2\, \mathrm{KL} + \beta \sum \text{method's terms}

    One module, so that several processes would wrap student and method as one. What has weight 0 is not computed,
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

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The scalar to minimise, its unweighted terms, and the student's logits."""
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
            total = total + weights.method * sum(own.values())
            terms |= own
        return total, terms, logits
