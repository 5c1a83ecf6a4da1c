"""One for all: distillation between networks of different families."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hkd.errors import IncompatibleError
from hkd.methods.base import Method, Setup, methods
from hkd.methods.stages import summed
from hkd.numerics.precision import at_least_float32
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class OneForAllConfig:
    """The settings of OFA-KD, as the authors' for CIFAR-100."""

    epsilon: float = option(1.0, "exponent of the target, above 1 for more of the label (the authors: 1 to 1.5)", gt=0)
    stage_weight: float = option(1.0, "weight of the exits' terms (the authors: 0.1 for MobileNetV2)", ge=0)


def adaptive_target(student: Tensor, teacher: Tensor, label: Tensor, epsilon: float) -> Tensor:
    r"""The mean over the images that have a label; 0 where none has.

    .. math:: -\sum_c \left[ (p^t_c + 1_{c = y})^\epsilon - 1_{c = y} \right] \log p^s_c

    Args:
        student, teacher: (B, C) logits, whose softmax at temperature 1 is p.
        label: (B,) classes; -1 for none.
        epsilon: ε.
    """
    known = label >= 0
    is_label = torch.zeros_like(teacher, dtype=torch.bool).scatter(1, label[:, None].clamp(min=0), True)
    one = is_label.to(torch.promote_types(teacher.dtype, torch.float32))
    target = (at_least_float32(teacher).softmax(dim=1) + one).pow(epsilon) - one
    entropy = -(target * at_least_float32(student).log_softmax(dim=1)).sum(dim=1)
    return torch.where(known, entropy, 0.0).sum() / known.sum().clamp(min=1)


def separable(inwards: int, outwards: int) -> nn.Sequential:
    """A separable convolution to half the side, then one to another width, each with batch norm and ReLU."""

    def part(width: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inwards, inwards, 3, stride, padding=1, groups=inwards, bias=False)
        return [depthwise, nn.Conv2d(inwards, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(*part(inwards, 2), *part(outwards, 1))


def exit_head(channels: int, halvings: int, width: int, classes: int) -> nn.Sequential:
    """From a stage map (B, c, h, w) to logits (B, C).

    Args:
        channels: c.
        halvings: how many separable convolutions, each of twice the width of the one before, the last of ``width``;
            with none, a 1x1 convolution.
        width: W of what the linear layer reads.
        classes: C.
    """
    widths = [channels * 2**n for n in range(halvings)] + [width]
    body: list[nn.Module] = [separable(a, b) for a, b in pairwise(widths)] or [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


@methods.register("ofa")
class OFA(Method[OneForAllConfig]):
    r"""Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023.

    .. math:: \mathrm{ofa}(s, t, y) + w \sum_k \mathrm{ofa}(h_k(F_k), t, y)

    s, t (B, C) are the logits and ofa is :func:`adaptive_target`. F_k (B, c, h, w) are the student's stage maps behind
    the stem, and h_k their exits (:func:`exit_head`), trained with the student and not part of it: the last stage's is
    a 1x1 convolution to W = max(D_s, D_t), each stage before it halves the map once more. ε = 1, w = 1 and γ = β = 1
    are the authors', whose cross-entropy has a label smoothing of .1.

    The student has to be a network of stage maps: the authors' exits for the tokens of a vision transformer are not
    here. The teacher may be any network.
    """

    Config = OneForAllConfig
    settings = "ofa"
    needs = frozenset({"logits"})

    def __init__(self, setup: Setup, config: OneForAllConfig) -> None:
        super().__init__(setup, config)
        student, behind = setup.student, setup.student.stages[1:]
        if not behind:
            raise IncompatibleError(
                f"method: ofa has an exit behind each stage map of a convolutional student, and {student.name} has "
                "none behind the stem; tokens of vision transformers are not read"
            )
        width = max(student.embedding_dim, setup.teacher.embedding_dim)
        self.exits = nn.ModuleList(
            exit_head(channels, len(behind) - k, width, student.num_classes)
            for k, (channels, _, _) in enumerate(behind, 1)
        )

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        epsilon, label = self.config.epsilon, batch.label
        stages = [
            adaptive_target(head(feature), teacher.logits, label, epsilon)
            for head, feature in zip(self.exits, student.features[1:], strict=True)
        ]
        return {
            "target": adaptive_target(student.logits, teacher.logits, label, epsilon),
            "exits": self.config.stage_weight * summed(stages),
        }
