"""Networks by name."""

from __future__ import annotations

from hkd.errors import RequestError, unknown
from hkd.models.base import Model, models
from hkd.models.external import from_factory, from_timm, from_torchvision


def create_model(name: str, num_classes: int, *, pretrained: bool = False) -> Model:
    """Builds a network by name.

    Args:
        name: one of :func:`list_models`, ``timm:NAME``, ``torchvision:NAME``, or ``package.module:callable``, a factory
            that is called with the number of classes.
        num_classes: C, at least 2.
        pretrained: start from the library's pretrained weights; timm and torchvision only.

    Raises:
        RequestError: the name is not known (near misses are named), or the network does not work as a classifier.
    """
    if num_classes < 2:
        raise RequestError(f"num_classes: expected 2 or more; got {num_classes}")
    library, _, rest = name.partition(":")
    if library == "timm":
        return from_timm(rest, num_classes, pretrained)
    if library == "torchvision":
        return from_torchvision(rest, num_classes, pretrained)
    if pretrained:
        raise RequestError(f"pretrained: only timm: and torchvision: models come with weights; got {name!r}")
    if rest:
        return from_factory(name, num_classes)
    if name not in models:
        raise unknown("model", name, models)
    model = models[name](num_classes)
    model.name = name
    return model


def list_models() -> list[str]:
    """The names of the zoo and of the networks of other packages. ``timm:`` and ``torchvision:`` names work beside
    them."""
    return list(models)
