"""What a search varies: ``FIELD=LO..HI``, ``FIELD=LO..HI:log`` or ``FIELD=A|B|C``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from hkd.config import check_distinct, parse_value
from hkd.errors import RequestError

FORMS = "FIELD=LO..HI[:log] or FIELD=A|B|C"


@dataclass(frozen=True)
class Range:
    """What a field is searched over: numbers between two bounds, both included, or some values.

    Attributes:
        field: an option, or a setting of the method.
        low, high: the bounds; None with choices.
        log: whether magnitudes are drawn evenly.
        choices: the values, instead of bounds.
    """

    field: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Range:
        """Reads one of the forms.

        Raises:
            RequestError: it is none of them, or the bounds are not in order.
        """
        field, equals, words = (part.strip() for part in text.partition("="))
        if not (field and equals and words):
            raise RequestError(f"search: expected {FORMS}; got {text!r}")
        if "|" in words:
            choices = tuple(parse_value(word.strip()) for word in words.split("|"))
            check_distinct(f"search: {field}", list(choices))
            return cls(field, choices=choices)
        match = re.fullmatch(r"(\S+?)\.\.(\S+?)(:log)?", words)
        low, high = (_number(match[n]) for n in (1, 2)) if match else (None, None)
        if match is None or low is None or high is None:
            raise RequestError(f"search: expected {FORMS}; got {text!r}")
        if low >= high or (match[3] and low <= 0):
            raise RequestError(f"search: expected LO below HI{', above 0' if match[3] else ''}; got {text!r}")
        return cls(field, low, high, bool(match[3]))

    @property
    def ends(self) -> tuple[Any, ...]:
        """Both bounds, or all choices."""
        return self.choices or (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value, from a file perhaps, is one that :meth:`suggest` may have given."""
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        assert self.low is not None and self.high is not None
        return type(value) in (int, float) and self.low <= value <= self.high

    def suggest(self, trial: Any, whole: bool) -> Any:
        """The value that a trial of Optuna's proposes, or has been given.

        Args:
            whole: whether the field takes whole numbers alone.
        """
        if self.choices:
            return trial.suggest_categorical(self.field, self.choices)
        if whole:
            return trial.suggest_int(self.field, self.low, self.high, log=self.log)
        return trial.suggest_float(self.field, self.low, self.high, log=self.log)


def _number(text: str) -> float | None:
    value = parse_value(text)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None  # type: ignore[return-value]
