"""The errors that the command line reports in one line: wrong requests, and runs that fail."""

import difflib
from collections.abc import Iterable

LONGEST_NAME = 80
"""Characters of a name that an error message repeats."""
MOST_NAMES = 60
"""That an error message lists; of more, those that come nearest."""


class RequestError(ValueError):
    """A wrong request: says which field it is, what is accepted, and what was given.

    The command line prints it as one line and exits with status 2.
    """


class IncompatibleError(RequestError):
    """A method that cannot work between the two networks of a request."""


class TrainingError(RuntimeError):
    """A run that failed though its request was right. The command line prints one line and exits with status 1."""


class DivergedError(TrainingError):
    """A run whose loss is NaN or infinite."""


class Stopped(KeyboardInterrupt):
    """A run that was stopped (Ctrl-C, SIGTERM) and has saved its state. Exit status 130, or 143."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def unknown(field: str, value: str, accepted: Iterable[str]) -> RequestError:
    """The error for a name that is not in a list, with the names that come near it."""
    names = list(accepted)
    lowered = {name.lower(): name for name in names}
    value = value if len(value) <= LONGEST_NAME else f"{value[:LONGEST_NAME]}…"
    near = [lowered[match] for match in difflib.get_close_matches(value.lower(), lowered, n=3)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    if not near and len(names) > MOST_NAMES:
        nearest = difflib.get_close_matches(value.lower(), lowered, n=5, cutoff=0.0)
        hint = f"nearest of {len(names):,}: {', '.join(lowered[match] for match in nearest)}"
    return RequestError(f"{field}: unknown name {value!r}; {hint}")
