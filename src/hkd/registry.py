"""One registry for everything that is known by name."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hkd.errors import RequestError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for, filled by decorators where the things are defined.

    Args:
        field: what a name of this kind is called in an error message.

    Example::

        methods: Registry[type[Method]] = Registry("method")

        @methods.register("rkd")
        class RKD(Method): ...
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters what it decorates. A name can be taken once."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise RequestError(f"{self.field}: the name {name!r} is already taken")
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise unknown(self.field, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
