"""Names of methods, models and data sets: of this package, of other packages and of plugins."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar, cast

from hkd.errors import RequestError, unknown
from hkd.options import check_text, shown

T = TypeVar("T")

LONGEST_NAME = 200
"""Characters; a name may come from a file."""


class Registry(Generic[T]):
    """Names and what they stand for, filled by decorators where the things are defined.

    The first look-up imports every module of ``package`` and loads the entry points of the group ``entry_points``,
    through which other distributions add names. An entry point is a module whose import registers things, or a class
    or function, which is registered under the entry point's name unless its import has registered it already. One that
    cannot be imported is skipped with a warning.

    Args:
        field: what a name of this kind is called in an error message.
        package: the package whose modules register names.
        entry_points: the entry point group.

    Example::

        methods: Registry[type[Method]] = Registry("method", package="hkd.methods", entry_points="hkd.methods")

        @methods.register("rkd")
        class RKD(Method): ...
    """

    def __init__(self, field: str, package: str | None = None, entry_points: str | None = None) -> None:
        self.field = field
        self.package = package
        self.group = entry_points
        self._entries: dict[str, T] = {}
        self._lock = threading.RLock()
        self._loading = self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters what it decorates.

        Raises:
            RequestError: the name is already taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise RequestError(
                    f"{self.field}: the name {name!r} is already taken by {_origin(self._entries[name])}; "
                    f"{_origin(entry)} needs another"
                )
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise RequestError(f"{self.field}: expected a name of at most {LONGEST_NAME} characters; got {shown(name)}")
        self._load()
        if name not in self._entries:
            raise unknown(self.field, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def _load(self) -> None:
        """Imports whatever registers names, once. What is imported may itself look names up."""
        if self._loaded:
            return
        with self._lock:  # another thread waits until all names are there
            if self._loading or self._loaded:
                return
            self._loading = True
            try:
                self._import_package()
                for point in entry_points(group=self.group) if self.group is not None else ():
                    self._load_entry_point(point)
                self._loaded = True
            finally:
                self._loading = False

    def _import_package(self) -> None:
        if self.package is not None:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")

    def _load_entry_point(self, point: EntryPoint) -> None:
        try:
            loaded = point.load()
        except RequestError:  # a name that is already taken
            raise
        except Exception as error:  # importing runs another distribution's code
            distribution = point.dist.name if point.dist is not None else "an unknown distribution"
            skipped = f"{self.field}: skipped the entry point {point.name!r} of {distribution}"
            warnings.warn(f"{skipped}; cannot import {point.value!r} ({_reason(error)})", RuntimeWarning, stacklevel=2)
            return
        if callable(loaded) and not any(loaded is entry for entry in self._entries.values()):
            self.register(point.name)(cast("T", loaded))


_plugins: dict[str, None] = {}


def load_plugins(names: Iterable[str]) -> None:
    """Imports modules that register methods, models or data sets. Each is looked for in the working directory first.

    The runs of a study are processes of their own, which import them, too.

    Args:
        names: dotted module names that a person typed, for importing one runs its code.

    Raises:
        RequestError: one cannot be imported.
    """
    search_working_directory()
    for name in names:
        check_text("plugin", name)
        try:
            importlib.import_module(name)
        except Exception as error:  # importing runs the plugin's code
            raise RequestError(f"plugin: cannot import {name!r} ({_reason(error)})") from error
        _plugins[name] = None


def loaded_plugins() -> tuple[str, ...]:
    """The modules that :func:`load_plugins` has imported, in order."""
    return tuple(_plugins)


def search_working_directory() -> None:
    """Makes modules of the working directory importable, as ``python -m`` does, for a name that a person typed."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _reason(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _origin(entry: object) -> str:
    """Where a thing was defined."""
    module, name = getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(entry)
