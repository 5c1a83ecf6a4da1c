"""Classical knowledge distillation."""

from torch import Tensor
from torch.nn import functional as F

from hkd.methods.base import Method, NoConfig, Setup, Weights, methods
from hkd.types import Batch, ModelOutput


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""The classical distillation term, a scalar, in float32.

    .. math:: T^2\, \mathrm{KL}(\mathrm{softmax}(l_t / T) \,\|\, \mathrm{softmax}(l_s / T)) / B

    Args:
        student_logits, teacher_logits: (B, C).
        temperature: T.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    student = (student_logits.float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits.float() / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@methods.register("kd")
class KD(Method[NoConfig]):
    """Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.

    See :func:`kd_loss`. Every other method can be combined with this term (``NAME+kd``, or ``--kd-weight``, α). On its
    own it is that same term with the benchmark's weights, .1 CE + .9 KD, so its own weight (β) is 0.
    """

    weights = Weights(ce=0.1, kd=0.9, method=0.0)

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"kd": kd_loss(student.logits, teacher.logits, temperature=4.0)}
