"""Methods by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hkd.errors import RequestError, unknown
from hkd.methods.base import Method, Setup, methods
from hkd.methods.of_teachers import OfTeachers, check_reads, seed_of
from hkd.models.base import Model
from hkd.options import check_fields, coerced


def create_method(
    name: str,
    *,
    student: Model,
    teacher: Model | Sequence[Model],
    num_samples: int,
    labels: Tensor | None = None,
    image_size: int | None = None,
    seed: int = 0,
    **config: Any,
) -> Method[Any]:
    """Builds a method for two networks and a training set.

    Args:
        name: one of :func:`list_methods`.
        student, teacher: the two networks. Of several teachers each gets an instance of the method, of which the terms
            are averaged: :class:`hkd.methods.of_teachers.OfTeachers`.
        num_samples: N, how many training images there are.
        labels: (N,) their classes.
        image_size: side of the training images in pixels; the networks' usual sizes if not given.
        seed: of the method's draws.
        config: settings of the method, by the names of its ``Config``.

    Raises:
        RequestError: the method or one of its settings is unknown, a setting is out of its range, or the method cannot
            work between these networks.
    """
    kind = methods[name]
    settings = method_config(name, config)
    teachers = (teacher,) if isinstance(teacher, Model) else tuple(teacher)
    if len(teachers) > 1:
        check_reads(kind)
    setups = [
        Setup(
            student=student.info_at(image_size or student.image_size),
            teacher=one.info_at(image_size or one.image_size),
            num_samples=num_samples,
            labels=labels,
            seed=seed_of(seed, n),
            networks=(student, one),
        )
        for n, one in enumerate(teachers)
    ]
    try:
        instances = [kind(setup, settings) for setup in setups]
        return instances[0] if len(instances) == 1 else OfTeachers(setups[0], instances)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"{kind.settings or name}.{error}") from error


def method_config(name: str, values: dict[str, Any]) -> Any:
    """The settings of a method: its ``Config`` with the given values, checked against their types and ranges.

    Raises:
        RequestError: the method or a setting is unknown, or a value is of the wrong type or out of its range.
    """
    kind = methods[name]
    prefix, accepted = kind.settings or name, kind.Config.__dataclass_fields__
    for key in values:
        if not accepted:
            raise RequestError(f"{name}.{key}: the method {name} has no settings")
        if key not in accepted:
            raise unknown(prefix, key, accepted)
    config = kind.Config(**coerced(kind.Config, values, f"{prefix}."))
    check_fields(config, f"{prefix}.")
    return config


def list_methods() -> list[str]:
    """The names of the methods."""
    return sorted(methods)
