"""The distillation methods, one file each. A file in this folder is found without being listed anywhere."""

import importlib
import pkgutil
from typing import Any

from torch import Tensor

from hkd.errors import RequestError, unknown
from hkd.methods.base import Method, NoConfig, Setup, Weights, methods
from hkd.models.base import Model

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "NoConfig", "Setup", "Weights", "create_method", "list_methods", "methods"]


def create_method(
    name: str,
    *,
    student: Model,
    teacher: Model,
    num_samples: int,
    labels: Tensor | None = None,
    image_size: int | None = None,
    seed: int = 0,
    **config: Any,
) -> Method[Any]:
    """Builds a method for two networks and a training set.

    Args:
        name: one of :func:`list_methods`.
        student, teacher: the two networks.
        num_samples: N, how many training images there are.
        labels: (N,) their classes.
        image_size: side of the training images in pixels; the networks' usual sizes if not given.
        seed: of the method's own draws.
        config: settings of the method, by the names of its ``Config``.

    Raises:
        RequestError: the method or one of its settings is unknown, or a setting is out of its range.
    """
    kind = methods[name]
    accepted = list(getattr(kind.Config, "__dataclass_fields__", {}))
    for key in config:
        if key not in accepted:
            raise (
                unknown(f"{kind.settings or name}", key, accepted)
                if accepted
                else RequestError(f"{name}.{key}: the method {name} has no settings")
            )
    setup = Setup(
        student=student.info_at(image_size or student.image_size),
        teacher=teacher.info_at(image_size or teacher.image_size),
        num_samples=num_samples,
        labels=labels,
        seed=seed,
    )
    try:
        return kind(setup, kind.Config(**config))
    except ValueError as error:
        raise RequestError(f"{kind.settings or name}.{error}") from error


def list_methods() -> list[str]:
    """The names of the methods."""
    return sorted(methods)
