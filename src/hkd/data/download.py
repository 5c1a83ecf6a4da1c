"""Downloads of data sets."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from hkd.errors import RequestError


@contextlib.contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """Around code that may download into ``root``: keeps standard output clean; a failure is a one-line error."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError) as error:  # no network, no space, or a checksum that does not match
        reason = " ".join(str(error).split())
        raise RequestError(
            f"dataset: {name} is not complete under {root} and could not be downloaded ({reason})"
        ) from error
