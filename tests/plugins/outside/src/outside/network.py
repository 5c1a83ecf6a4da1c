"""A network of two convolutions."""

from __future__ import annotations

from torch import nn

from hkd.models import Model, models, wrap_model


@models.register("tinynet")
def tinynet(num_classes: int) -> Model:
    """Two convolutions and a classifier."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip
    return wrap_model(layers, image_size=8)
