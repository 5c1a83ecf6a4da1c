"""Networks by name."""

from __future__ import annotations

from hkd.errors import RequestError, unknown
from hkd.models.about import MOST_CLASSES
from hkd.models.base import Model, models
from hkd.models.external import from_factory, from_timm, from_torchvision, in_libraries
from hkd.models.names import split_projected, split_resized
from hkd.models.projected import ProjectedModel
from hkd.models.resized import ResizedModel
from hkd.options import shown
from hkd.outside import has_controls, whole_number

LONGEST_TYPED = 1000
"""Characters of a name; that of a factory has a module in it."""


def create_model(name: str, num_classes: int, *, pretrained: bool = False, image_size: int | None = None) -> Model:
    """Builds a network by name.

    The name is one that a person typed: a factory is imported, which runs its code. A name from a file goes through
    :func:`hkd.models.names.model_of_file` first.

    Args:
        name: one of :func:`list_models`, ``timm:NAME``, ``torchvision:NAME``, or ``package.module:callable``, a factory
            that is called with the number of classes. ``projected-WIDTH-SIDE-FACTOR:NAME`` is a network as SimKD
            leaves it, :class:`hkd.models.projected.ProjectedModel`; ``resized-SIZE:NAME`` one that resizes its images,
            :class:`hkd.models.resized.ResizedModel`.
        num_classes: C, from 2 to 1,000,000.
        pretrained: start from the library's pretrained weights; timm and torchvision only.
        image_size: side in pixels of the images that it will see; timm's transformers of a fixed size are built for it.

    Raises:
        RequestError: the name is not known (near misses are named), or the network does not work as a classifier.
    """
    num_classes = whole_number("num_classes", num_classes, 2, MOST_CLASSES)
    if not isinstance(name, str) or len(name) > LONGEST_TYPED or has_controls(name):
        raise RequestError(f"model: expected a name of at most {LONGEST_TYPED} characters; got {shown(name)}")
    projection, name = split_projected(name)
    if projection is not None:
        network = create_model(name, num_classes, pretrained=pretrained, image_size=image_size)
        return ProjectedModel(network, projection, num_classes)
    size, name = split_resized(name)
    if size is not None:
        return ResizedModel(create_model(name, num_classes, pretrained=pretrained, image_size=size), size)
    library, _, rest = name.partition(":")
    if library == "timm":
        return from_timm(rest, num_classes, pretrained, image_size)
    if library == "torchvision":
        return from_torchvision(rest, num_classes, pretrained)
    if pretrained:
        raise RequestError(f"pretrained: only timm: and torchvision: models come with weights; got {shown(name)}")
    if rest:
        return from_factory(name, num_classes)
    if name not in models:
        if found := in_libraries(name):
            raise RequestError(f"model: {shown(name)} is no name of the zoo; did you mean {' or '.join(found)}?")
        raise unknown("model", name, models)
    model = models[name](num_classes)
    model.name = name
    return model


def list_models() -> list[str]:
    """The names of the zoo and of the networks of other packages. ``timm:`` and ``torchvision:`` names work beside
    them."""
    return list(models)
