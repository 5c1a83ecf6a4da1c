"""What a model must return, and the parts that the zoo's families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.errors import RequestError
from hkd.registry import Registry
from hkd.types import Channels, ModelOutput


@dataclass(frozen=True)
class ModelInfo:
    """A network in numbers.

    Attributes:
        name: by which :func:`hkd.create_model` builds it.
        num_classes: C.
        embedding_dim: D, the width of what enters the classifier.
        image_size: side in pixels of the square images that ``stages`` was measured on.
        stages: (channels, height, width) of each map in ``features``, the stem's first.
        parameters: how many there are.
    """

    name: str
    num_classes: int
    embedding_dim: int
    image_size: int
    stages: tuple[tuple[int, int, int], ...]
    parameters: int


class Model(nn.Module, ABC):
    """A classifier that shows what it sees on the way: images (B, 3, H, W) in, :class:`ModelOutput` out."""

    name: str = ""
    image_size: int = 32
    """The usual side of its images, in pixels."""
    input_size: int | None = None
    """Side to which it resizes its images itself, where it does."""
    normalisation: tuple[Channels, Channels] | None = None
    """Mean and deviation of the channels that its weights were trained with, where they are known."""
    library_normalisation: tuple[Channels, Channels] | None = None
    """Those of the weights that its library has for it, whether it has them or not."""
    pretrained_classifier: bool = False
    """Whether the classifier, too, came with a library's weights."""

    classes: list[str]
    """Names of the classes, by label; of a network that :func:`hkd.load_model` returned."""
    transform: Callable[[Any], Tensor]
    """From a PIL picture to what the network takes, float32 (3, H, W), as its evaluation did it; of the same."""

    def __init__(self) -> None:
        super().__init__()
        self._infos: dict[int, ModelInfo] = {}

    @abstractmethod
    def forward(self, image: Tensor) -> ModelOutput: ...

    def classify(self, vectors: Tensor) -> Tensor:
        """The classifier applied to other vectors than the embedding, such as the cells of the map that it averages.

        Args:
            vectors: (..., D).

        Returns:
            Logits (..., C).

        Raises:
            RequestError: the network is not an average pooling and a linear layer behind its last map.
        """
        raise RequestError(
            f"model: expected a network that classifies averages of its last map with a linear layer; got "
            f"{self.name or type(self).__name__}, which has no classify"
        )

    @property
    def info(self) -> ModelInfo:
        """The network in numbers, for images of its usual size."""
        return self.info_at(self.image_size)

    def info_at(self, image_size: int) -> ModelInfo:
        """The network in numbers, measured once on a black image of the given side. Leaves the network as it was.

        Raises:
            RequestError: the network does not take images of that size.
        """
        if image_size not in self._infos:
            self._infos[image_size] = self._measure(image_size)
        return replace(self._infos[image_size], name=self.name)

    def _measure(self, image_size: int) -> ModelInfo:
        like = next(self.parameters())
        black = torch.zeros(1, 3, image_size, image_size, device=like.device, dtype=like.dtype)
        with torch.no_grad(), evaluating(self):
            try:
                out = self(black)
            except Exception as error:  # each network has its own way of saying that an image is too small
                reason = " ".join(str(error).split())
                raise RequestError(
                    f"image_size: {self.name or type(self).__name__} does not take images of {image_size}x{image_size} "
                    f"({reason})"
                ) from error
        return ModelInfo(
            name=self.name,
            num_classes=out.logits.shape[1],
            embedding_dim=out.embedding.shape[1],
            image_size=image_size,
            stages=tuple((f.shape[1], f.shape[2], f.shape[3]) for f in out.features),
            parameters=sum(p.numel() for p in self.parameters()),
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode, and afterwards each of its parts back into its own."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class CifarModel(Model):
    """A network of the zoo: stages, global average pooling, a linear classifier.

    Names and shapes of all parameters are those of the RepDistiller benchmark (Tian et al., "Contrastive Representation
    Distillation", ICLR 2020), so that its published checkpoints load. Networks average over whatever the last map's
    size is, so they take other image sizes too.
    """

    @abstractmethod
    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stage maps after and before their last ReLU, stem first."""

    @abstractmethod
    def classify(self, vectors: Tensor) -> Tensor:
        """The logits (..., C) of vectors (..., D)."""

    def pooled(self, feature: Tensor, preactivation: Tensor) -> Tensor:
        """The map that is averaged, from the last stage map after and before its ReLU: in most networks the former."""
        return feature

    def forward(self, image: Tensor) -> ModelOutput:
        features, preactivations = self.maps(image)
        pooled = self.pooled(features[-1], preactivations[-1])
        embedding = F.adaptive_avg_pool2d(pooled, 1).flatten(1)
        return ModelOutput(self.classify(embedding), embedding, tuple(features), tuple(preactivations), pooled)


models: Registry[Callable[[int], Model]] = Registry("model", package="hkd.models", entry_points="hkd.models")
"""The zoo: name -> a builder that takes the number of classes."""


def run_stages(stem: Tensor, *stages: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Runs stages of blocks that return what stands before their last ReLU, as the stem did.

    Returns the stem's and each stage's last map, after and before that ReLU.
    """
    features, preactivations = [stem.relu()], [stem]
    for stage in stages:
        x = features[-1]
        for block in stage.children():
            preactivation = block(x)
            x = preactivation.relu()
        features.append(x)
        preactivations.append(preactivation)
    return features, preactivations


def initialise(model: nn.Module) -> None:
    """He initialisation of all convolutions by fan-out, biases zero; the rest stays as PyTorch makes it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear(model: nn.Module) -> None:
    """Linear layers start at N(0, 0.01), biases zero, as in the benchmark's VGG and MobileNetV2."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
