"""Standard output and error that may be closed, full, or a pipe whose reader is gone: none of it is an error."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any


class Stream:
    """A standard stream that goes nowhere once it cannot be written to.

    Args:
        stream: the original.
        stops: whether a run stops, as at SIGHUP, when the reader of a pipe is gone.
    """

    def __init__(self, stream: Any, stops: bool) -> None:
        self._stream = stream
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lenient():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lenient():
            self._stream.flush()

    @contextlib.contextmanager
    def _lenient(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is buffered goes there, too
            os.close(nowhere)
            hang_up = getattr(signal, "SIGHUP", None)
            if self._stops and error.errno == errno.EPIPE and hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:
                os.kill(os.getpid(), hang_up)  # before a run has begun there is nothing to save, and it ends at once


@contextlib.contextmanager
def lenient_streams() -> Iterator[None]:
    """While it is entered, standard output and error are :class:`Stream`; closed ones are opened to nowhere, before a
    file of the run gets their number."""
    before = sys.stdout, sys.stderr
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out, error = (open(os.devnull, "w") if stream is None else stream for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = Stream(out, stops=False), Stream(error, stops=True)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
