"""Wasserstein distance for knowledge distillation, on logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.errors import IncompatibleError
from hkd.methods.base import Method, Setup, methods
from hkd.models.external import WrappedModel
from hkd.numerics.precision import at_least_float32, full_precision
from hkd.options import option
from hkd.types import Batch, ModelOutput

EPSILON = 1e-8


@dataclass(frozen=True)
class WassersteinConfig:
    """The settings of WKD-L. The weight and the temperature are the authors' for resnet32x4 -> resnet8x4."""

    gamma: float = option(600.0, "weight of the transport (the authors: 200 and T 6 for W40-2 -> ShuffleV1)", ge=0)
    temperature: float = option(8.0, "T of the probabilities that are transported", gt=0)
    kappa: float = option(1.0, "κ, how fast the cost rises as two classes become less related", gt=0)
    regularisation: float = option(0.05, "of the entropy in Sinkhorn's iterations", gt=0)
    iterations: int = option(10, "of Sinkhorn", ge=1)
    decay_from: float = option(0.625, "the part of the training after which gamma falls by a cosine to 0", ge=0, le=1)


def classifier_of(setup: Setup) -> nn.Linear | nn.Conv2d:
    """The teacher's last linear layer, or 1x1 convolution, whose weight has a row (D) for each of the C classes.

    Raises:
        ValueError: the networks are not in the setup.
        IncompatibleError: the teacher has no such layer.
    """
    if setup.networks is None:
        raise ValueError("networks: expected the student and the teacher, whose classifier is read; got none")
    teacher, shape = setup.networks[1], (setup.teacher.num_classes, setup.teacher.embedding_dim)
    parts = list(teacher.modules())
    if isinstance(teacher, WrappedModel):
        parts = [teacher.module.get_submodule(teacher.classifier)]
    for part in reversed(parts):
        if isinstance(part, nn.Linear | nn.Conv2d) and part.weight.flatten(1).shape == shape:
            return part
    raise IncompatibleError(
        f"method: wkd relates classes by the rows of the teacher's linear classifier, and {setup.teacher.name} has none"
    )


def transport_cost(
    student: Tensor, teacher: Tensor, target: Tensor, cost: Tensor, regularisation: float, iterations: int
) -> Tensor:
    r"""⟨Π, M⟩ of each image, (B,), with Π = diag(u) K diag(v), K = exp(-M / ε), by Sinkhorn's iterations

    .. math:: v = q / (K^\top u + 10^{-8}), \qquad u = p / (K v + 10^{-8}), \qquad u_0 = 1 / (C - 1)

    Each image's own class is outside its problem: its u and v are 0. So all images share one K, in O(B C + C²) memory
    where matrices without the row and the column would take O(B C²). The gradient passes through all iterations.

    Args:
        student, teacher: (B, C) p and q, 0 for the image's own class.
        target: (B, C) true for that class.
        cost: (C, C) M.
        regularisation: ε.
        iterations: how many updates of v and u.
    """
    kernel = (-cost / regularisation).exp()
    u = (~target).to(teacher.dtype) / (teacher.shape[1] - 1)
    for _ in range(iterations):
        v = teacher / (u @ kernel + EPSILON)
        u = student / (v @ kernel.T + EPSILON)
    return ((u @ (kernel * cost)) * v).sum(dim=1)


@methods.register("wkd")
class WKD(Method[WassersteinConfig]):
    r"""Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024.

    The form on logits (WKD-L), beside CE with weight 1:

    .. math:: -\mathrm{mean}\; p^t_y \log p^s_y + \gamma\, \mathrm{mean}\, \langle \Pi, M \rangle, \qquad
        M_{ij} = 1 - \exp(-\kappa (1 - \mathrm{IR}_{ij})) + 10^{-8}

    means over the images of the batch that have a label y. p = softmax(l) in the first term; Π transports
    softmax(l_s / T) to softmax(l_t / T), both of the C - 1 other classes alone, without T²
    (:func:`transport_cost`, which is regularised, so only the student's marginal is exact). γ = 600, T = 8, κ = 1,
    ε = .05 and 10 iterations are the authors'. From 150 of 240 epochs on, .625 of the training, γ falls by a cosine and
    is 0 in the last one; the first term stays. Where no loop tells the epoch, γ stays.

    IR (C, C) is how related two classes are: the cosine of their rows in the teacher's classifier, which is one of the
    authors' two forms. The other, linear CKA of the classes' training images, needs a pass of the teacher over the
    training set and is not built; the authors' numbers are with it, so this default is not their protocol.
    """

    Config = WassersteinConfig
    settings = "wkd"
    needs = frozenset({"logits", "classifier"})
    follows_progress = True

    def __init__(self, setup: Setup, config: WassersteinConfig) -> None:
        super().__init__(setup, config)
        self.classifier = (classifier_of(setup),)  # in a tuple: it is no part of the method

    @property
    def gamma(self) -> float:
        """The weight of the transport in the present epoch."""
        if self.progress is None:
            return self.config.gamma
        start = round(self.config.decay_from * self.progress.epochs)
        past, left = self.progress.epoch + 1 - start, max(self.progress.epochs - start, 1)
        return self.config.gamma * (1 + math.cos(math.pi * min(max(past, 0) / left, 1.0))) / 2

    def cost(self, like: Tensor) -> Tensor:
        """M (C, C), in the type and on the device of a tensor. A teacher may be trained after the method is built."""
        with torch.no_grad():
            rows = F.normalize(self.classifier[0].weight.flatten(1).to(like), dim=1)
            return 1 - (self.config.kappa * (rows @ rows.T - 1)).exp() + EPSILON

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        config = self.config
        known = (batch.label >= 0).float()
        label, count = batch.label.clamp(min=0)[:, None], known.sum().clamp(min=1)
        logits_s, logits_t = at_least_float32(student.logits), at_least_float32(teacher.logits)
        is_target = torch.zeros_like(logits_s, dtype=torch.bool).scatter(1, label, True)
        imitated = logits_t.softmax(dim=1).gather(1, label) * logits_s.log_softmax(dim=1).gather(1, label)
        p, q = (
            (logits / config.temperature).masked_fill(is_target, -torch.inf).softmax(dim=1)
            for logits in (logits_s, logits_t.to(logits_s.dtype))
        )
        with full_precision(p):
            cost = transport_cost(p, q, is_target, self.cost(p), config.regularisation, config.iterations)
        return {
            "target": -(known * imitated[:, 0]).sum() / count,
            "transport": self.gamma * (known * cost).sum() / count,
        }
