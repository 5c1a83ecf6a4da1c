"""Packages whose names are imported when they are first used. Imports nothing but the standard library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package that imports a module when one of its names is first used.

    Importing the package is then instant, and so is importing a light module of it.

    Args:
        package: its ``__name__``.
        names: the names that each module defines.

    Example::

        if TYPE_CHECKING:  # for type checkers, which do not run this file
            from hkd.methods.create import create_method as create_method
        else:
            __getattr__, __dir__ = lazy(__name__, {"hkd.methods.create": ("create_method",)})
    """
    module_of = {name: module for module, defined in names.items() for name in defined}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_of[name]), name)

    def listed() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *module_of})

    return get, listed
