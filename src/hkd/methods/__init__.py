"""The distillation methods, one file each. A file in this folder is found without being listed anywhere."""

import importlib
import pkgutil
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from hkd.errors import RequestError, unknown
from hkd.methods.base import Initialisation, Method, NoConfig, Setup, Weights, methods
from hkd.models.base import Model

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Initialisation", "Method", "NoConfig", "Setup", "Weights", "create_method", "list_methods", "methods"]


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
        RequestError: the method or one of its settings is unknown, a setting is out of its range, or the method cannot
            work between these two networks.
    """
    kind = methods[name]
    accepted = list(getattr(kind.Config, "__dataclass_fields__", {}))
    prefix = kind.settings or name
    for key, value in config.items():
        if key not in accepted:
            raise (
                unknown(prefix, key, accepted)
                if accepted
                else RequestError(f"{name}.{key}: the method {name} has no settings")
            )
        _check_type(f"{prefix}.{key}", value, get_type_hints(kind.Config)[key])
    setup = Setup(
        student=student.info_at(image_size or student.image_size),
        teacher=teacher.info_at(image_size or teacher.image_size),
        num_samples=num_samples,
        labels=labels,
        seed=seed,
        networks=(student, teacher),
    )
    try:
        return kind(setup, kind.Config(**config))
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"{prefix}.{error}") from error


def _check_type(field: str, value: Any, hint: Any) -> None:
    """Raises :class:`RequestError` where a setting is not of the type that its field declares."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise RequestError(f"{field}: expected one of {', '.join(map(str, get_args(hint)))}; got {value!r}")
        return
    kinds = get_args(hint) or (hint,)  # of `int | None` and the like
    numbers = (int, float) if float in kinds else kinds
    if not isinstance(value, numbers) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
        raise RequestError(f"{field}: expected {names}; got {value!r}")


def list_methods() -> list[str]:
    """The names of the methods."""
    return sorted(methods)
