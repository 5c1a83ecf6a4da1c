"""Downloads of data sets."""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from hkd.errors import RequestError

_ALLOWED = ContextVar("allowed", default=True)


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Around code that opens what is on this machine: a data set that is not complete there is a one-line error."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@contextlib.contextmanager
def downloading(name: str, root: Path) -> Iterator[bool]:
    """Around code that may download into ``root``: keeps standard output clean; a failure is a one-line error.

    Yields:
        Whether it may, see :func:`no_downloads`.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield _ALLOWED.get()
    except (OSError, RuntimeError) as error:  # no network, no space, or a checksum that does not match
        reason = " ".join(str(error).split())
        raise RequestError(
            f"dataset: {name} is not complete under {root} and could not be downloaded ({reason})"
        ) from error
