"""Multi-level logit distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hkd.methods.base import Method, Setup, Weights, methods
from hkd.methods.kd import cross_entropy, kd_loss
from hkd.numerics.gather import gather
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput

TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
"""T of the authors; the first is a setting (1 on ImageNet)."""


@dataclass(frozen=True)
class MultiLevelConfig:
    """The settings of MLKD, as the authors' for CIFAR-100."""

    temperature: float = option(4.0, "the first of five T; the others are 3, 5, 2 and 6 (ImageNet: 1)", gt=0)
    level_weight: float = option(0.9, "weight of the instance, batch and class levels (ImageNet: 0.5)", ge=0)
    strong_weight: float = option(0.1, "weight of the cross-entropy of the strong view (ImageNet: 0.5)", ge=0)


def not_above_the_median(values: Tensor) -> Tensor:
    """The part of values (n,) that are at most their median; one half where n is even and none are equal."""
    middle = values.sort().values[(len(values) - 1) // 2]
    return (values <= middle).to(values.dtype).mean()


def gram_distance(a: Tensor, b: Tensor) -> Tensor:
    """||A Aᵀ - B Bᵀ||² / R, the squared Frobenius norm: (R, n) and (R, n) -> scalar."""
    return (a @ a.T - b @ b.T).square().sum() / len(a)


@methods.register("mlkd")
class MLKD(Method[MultiLevelConfig]):
    r"""Jin et al., "Multi-Level Logit Distillation", CVPR 2023.

    As their code runs it.

    .. math:: .1\,\mathrm{CE}(\tilde s) + .9\,\Big[m \sum_T I_T + \tilde I_{T_1} + \tilde I_3 + \tilde I_5 + I_2 + I_6
        + m \sum_T \mathrm{BC}_T + m' \sum_T \mathrm{CC}_T\Big], \quad T \in (T_1 = 4, 3, 5, 2, 6)

    :math:`I_T = T^2\,\mathrm{KL}(\mathrm{softmax}(t / T) \| \mathrm{softmax}(s / T))` is a mean over the batch. With P
    (B, C) the probabilities at T, :math:`\mathrm{BC}_T = \|P_t P_t^\top - P_s P_s^\top\|_F^2 / B` relates images,
    :math:`\mathrm{CC}_T = \|P_t^\top P_t - P_s^\top P_s\|_F^2 / C` classes. A tilde is the strong view, which both
    networks see; the student's batch norms count it, as the authors' do. γ = .1 is the weight of CE of the first view.

    The paper masks images of low confidence and classes of low sums of it, and has all three levels on both views. The
    code reduces the losses before it masks, so that the masks only scale: m is the part of the images whose largest
    p_t is at most the median, m' that of the classes by their sum over the batch; either is near one half. I_2 and I_6
    of the second sum are of the first view again, and BC and CC of the strong one do not enter. The published numbers
    were made so. The authors train up to 960 epochs.
    """

    Config = MultiLevelConfig
    settings = "mlkd"
    weights = Weights(ce=0.1, method=1.0)
    needs = frozenset({"logits", "strong"})

    def __init__(self, setup: Setup, config: MultiLevelConfig) -> None:
        super().__init__(setup, config)
        self.temperatures = (config.temperature, *TEMPERATURES[1:])

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        image, config = self.strong_of(batch), self.config
        strong_s, strong_t = (at_least_float32(see(image).logits) for see in (self.student_sees, self.teacher_sees))
        s, t = (gather(at_least_float32(out.logits)) for out in (student, teacher))
        p = t.softmax(dim=1)
        images, classes = not_above_the_median(p.amax(dim=1)), not_above_the_median(p.sum(dim=0))
        weak = [kd_loss(s, t, temperature) for temperature in self.temperatures]
        strong = [kd_loss(strong_s, strong_t, temperature) for temperature in self.temperatures[:3]]
        instance = images * sum(weak) + sum(strong) + sum(weak[3:])
        with full_precision(s):
            pairs = [[(x / temperature).softmax(dim=1) for x in (t, s)] for temperature in self.temperatures]
            between_images = images * torch.stack([gram_distance(a, b) for a, b in pairs]).sum()
            between_classes = classes * torch.stack([gram_distance(a.T, b.T) for a, b in pairs]).sum()
        return {
            "strong_ce": config.strong_weight * cross_entropy(strong_s, batch.label),
            "instance": config.level_weight * instance,
            "batch": config.level_weight * between_images,
            "class": config.level_weight * between_classes,
        }
