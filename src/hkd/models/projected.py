"""A network whose last map is projected to another width, and classified there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.errors import RequestError
from hkd.models.base import Model, ModelInfo, initialise
from hkd.models.names import Projection
from hkd.numerics.precision import full_precision
from hkd.types import ModelOutput


class ProjectedModel(Model):
    r"""A network with a projector and a linear classifier of another width behind its last map.

    .. math:: l = W\, \mathrm{GAP}(\varphi(F)) + b

    F (B, D, h, w) is the map that the network averages, pooled to ``projection.side`` where it is larger; φ, of Chen et
    al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, is a bottleneck of convolutions
    without bias, 1x1 to width / factor, 3x3, 1x1 to the width, a batch norm and a ReLU behind each. In the output,
    ``pooled`` is φ(F) and ``embedding`` its average; stage maps are the network's own.

    The network's own classifier stays in the state, unused; it is not among :attr:`info`'s parameters.

    Args:
        network: whose last map is projected. It has to say which map it averages.
        projection: the width, the side and the factor.
        num_classes: C.
    """

    def __init__(self, network: Model, projection: Projection, num_classes: int) -> None:
        super().__init__()
        self.network, self.projection = network, projection
        self.name, self.image_size = f"{projection}:{network.name}", network.image_size
        self.normalisation = network.normalisation
        inwards, width = network.info.embedding_dim, projection.width
        narrow = max(1, width // projection.factor)
        layers: list[nn.Module] = []
        for a, b, side in ((inwards, narrow, 1), (narrow, narrow, 3), (narrow, width, 1)):
            layers += [nn.Conv2d(a, b, side, padding=side // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.projector = nn.Sequential(*layers)
        initialise(self.projector)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> ModelOutput:
        seen: ModelOutput = self.network(image)
        if seen.pooled is None:
            raise RequestError(f"model: expected a network that averages its last map; got {self.network.name}")
        map_, side = seen.pooled, self.projection.side
        if max(map_.shape[2:]) > side:
            map_ = F.adaptive_avg_pool2d(map_, side)
        projected = self.projector(map_)
        embedding = projected.mean(dim=(2, 3))
        return ModelOutput(self.classify(embedding), embedding, seen.features, seen.preactivations, projected)

    def classify(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.classifier(vectors)
        return logits

    def reuse(self, other: Model) -> None:
        """Takes over the classifier of another network of this width and these classes, and freezes it.

        The linear layer is read off :meth:`Model.classify`: W and b of W x + b.
        """
        weight, like = self.classifier.weight, next(other.parameters())
        with torch.no_grad(), full_precision(weight):
            unit = torch.eye(weight.shape[1], dtype=like.dtype, device=like.device)
            bias = other.classify(torch.zeros_like(unit[:1]))
            weight.copy_((other.classify(unit) - bias).T)
            self.classifier.bias.copy_(bias[0])
        self.classifier.requires_grad_(False)

    def _measure(self, image_size: int) -> ModelInfo:
        info = super()._measure(image_size)
        shape = (info.num_classes, self.network.info.embedding_dim)
        unused = [m for m in self.network.modules() if getattr(getattr(m, "weight", None), "shape", ())[:2] == shape]
        return replace(info, parameters=info.parameters - sum(p.numel() for p in unused[-1].parameters()))
