"""Downloads of data sets."""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from hkd.errors import RequestError
from hkd.files import shown_path

_REFUSED: ContextVar[str | None] = ContextVar("refused", default=None)


@contextlib.contextmanager
def no_downloads(reason: str = "nothing is downloaded here") -> Iterator[None]:
    """Around code that opens what is on this machine: a data set that is not complete there is a one-line error.

    Args:
        reason: what the error says at its end.
    """
    token = _REFUSED.set(reason)
    try:
        yield
    finally:
        _REFUSED.reset(token)


@contextlib.contextmanager
def downloading(name: str, root: Path) -> Iterator[bool]:
    """Around code that may download into ``root``: keeps standard output clean; a failure is a one-line error.

    Yields:
        Whether it may, see :func:`no_downloads`.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield (refused := _REFUSED.get()) is None
    except (OSError, RuntimeError) as error:  # no network, no space, or a checksum that does not match
        reason = refused or f"it could not be downloaded ({' '.join(str(error).split())})"
        raise RequestError(f"dataset: {name} is not complete under {shown_path(root)}; {reason}") from error
