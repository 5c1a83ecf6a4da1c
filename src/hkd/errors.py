"""The errors that are told in one line: what was asked wrongly, and what went wrong on the way."""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """A request that cannot be carried out as it was made: says which field, what it was, and what is accepted.

    The command line prints it as one line and exits with status 2.
    """


class IncompatibleError(RequestError):
    """A method that cannot work between the two networks it was asked for."""


class TrainingError(RuntimeError):
    """A run that was asked for rightly and failed. The command line prints it as one line and exits with status 1."""


class DivergedError(TrainingError):
    """A run whose loss is no longer a number: what it was asked to learn cannot be learnt so."""


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop (Ctrl-C, SIGTERM) and has saved where it is. Exit status 130, or 143."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def unknown(field: str, value: str, accepted: Iterable[str]) -> RequestError:
    """The error for a name that is not in a list, with the names that come near it."""
    names = list(accepted)
    lowered = {name.lower(): name for name in names}
    near = [lowered[match] for match in difflib.get_close_matches(value.lower(), lowered, n=3)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return RequestError(f"{field}: unknown name {value!r}; {hint}")
