"""YAML files may come from anywhere: code that one names is refused unless ``--trust-config`` is on the command line.

Imports nothing heavy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hkd.models.names import names_code, untrusted

TRUST = "--trust-config"
WAY = f"name it on the command line, or add {TRUST} if you trust the file"
ROLES = ("student", "teacher")
NETWORKS = (*ROLES, "model", "students", "teachers")
"""Options whose values, or items, name networks."""


def trusts_files(argv: Sequence[str]) -> bool:
    """Whether a command line has ``--trust-config``, before it is parsed."""
    options = itertools.takewhile(lambda word: word != "--", argv)
    return any(word.replace("_", "-") == TRUST for word in options)


def check_plugins(file: Path, modules: Iterable[str], typed: Sequence[str]) -> None:
    """Raises :class:`RequestError` for the first module of a file that the command line does not name."""
    for module in modules:
        if module not in typed:
            raise untrusted(file, "plugins", module, WAY)


def check_networks(config: Mapping[str, Any], given: Mapping[str, Any], origin: Mapping[str, Path]) -> None:
    """Raises :class:`RequestError` for the first network of a file that is code and that the run would use.

    Args:
        config: the options of the files.
        given: those of the command line, which take the place of the files'.
        origin: the file of each option.
    """
    varied = given.get("field", config.get("field"))
    for option, value in config.items():
        if option not in given:
            for text in value if isinstance(value, list) else [value]:
                for name in _networks(option, text, varied) if isinstance(text, str) else ():
                    if names_code(name):
                        raise untrusted(origin[option], option, name, WAY)


def _networks(option: str, text: str, varied: Any) -> Iterator[str]:
    """The names of networks in a value, or an item, of an option.

    Args:
        varied: the option of which a sweep's ``values`` are.
    """
    if option in NETWORKS or (option == "values" and varied in ROLES):
        yield text
    elif option == "pairs":
        teacher, _, student = text.partition("->")
        yield from (teacher.strip(), student.strip())
    elif option == "search":
        field, _, choices = text.partition("=")
        yield from (choice.strip() for choice in choices.split("|") if field.strip() in ROLES)
