"""Docstrings as Markdown: the equations, roles, tables and literal blocks of reStructuredText that they hold.

An extension of Griffe, which reads the code for mkdocstrings; a class of options gets the table of its options, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from griffe import Class, Docstring, Extension, Module, Object

import hkd
from hkd.options import default_of, hints_of, options

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")
NO_BREAK = "\N{NO-BREAK SPACE}"
RULER = re.compile(r" *=+(?: +=+)+ *")


class Docstrings(Extension):
    """Rewrites each docstring once all code is read."""

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """Makes the classes of options that a call makes (DistillConfig) known as classes."""
        for name, member in list(mod.members.items()) if mod.path == "hkd.config" else ():
            if not member.is_alias and member.is_attribute and _is_config(getattr(hkd, name, None)):
                mod.set_member(name, Class(name, lineno=member.lineno, endlineno=member.endlineno))

    def on_object(self, *, obj: Object, **_: Any) -> None:
        config = getattr(hkd, obj.name, None) if obj.path.startswith("hkd.config.") else None
        if _is_config(config):
            obj.docstring = Docstring(f"{config.__doc__}\n\n{table_of(config)}", parent=obj)
        elif obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, lambda name: identifier(name, obj))


def _is_config(value: Any) -> bool:
    return isinstance(value, type) and is_dataclass(value) and bool(options(value))


def identifier(name: str, scope: Object) -> str:
    """The full name of what a docstring in ``scope`` calls by a name that may be short."""
    first = name.partition(".")[0]
    while True:
        if first in scope.members:
            return f"{scope.path}.{name}"
        if scope.parent is None or scope.is_module:
            break
        scope = scope.parent
    return f"hkd.{name}" if first in hkd.__all__ else name


def table_of(config: type, flag: Callable[[str], str] = str) -> str:
    """A table in Markdown of the options of a dataclass: name, type or choices, range, default and sentence."""
    rows = ["| option | values | default | |", "|---|---|---|---|"]
    for entry in options(config):
        default = default_of(entry)
        shown = "" if default is None else f"`{_value(default)}`"
        values = _values(hints_of(config)[entry.name], entry.metadata["range"])
        rows.append(f"| `{flag(entry.name)}` | {values} | {shown} | {_cell(entry.metadata['help'])} |")
    return "\n".join(rows)


def _value(value: Any) -> str:
    if isinstance(value, tuple | dict):
        return ", ".join(map(_value, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(hint: Any, bounds: dict[str, float]) -> str:
    """What an option accepts."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    several = get_origin(hint) in (Union, UnionType)
    named = []
    for kind in get_args(hint) if several else (hint,):
        if get_origin(kind) is Literal:
            named += [f"`{value}`" for value in get_args(kind)]
        elif get_origin(kind) is tuple:
            named.append("a list")
        elif kind is not type(None):
            named.append(
                {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(kind, "names and values")
            )
    limits = ", ".join(f"{signs[name]} {bound:,}" for name, bound in bounds.items())
    return ", ".join(named) + (f" {limits}" if limits else "")


def _cell(text: str) -> str:
    """Plain text in a cell of Markdown: no end of the cell, no tag and no link."""
    return text.replace("<", "&lt;").translate({ord(sign): f"\\{sign}" for sign in "|[]*_"})


def to_markdown(text: str, identifier: Callable[[str], str] = str) -> str:
    """A docstring as Markdown.

    Args:
        text: without the indentation of its code.
        identifier: the full name of what a role names, which it becomes a link to where the site documents it.
    """

    def link(match: re.Match[str]) -> str:
        shown = match[1].replace("_", r"\_")
        return f'<autoref optional identifier="{identifier(match[1])}"><code>{shown}</code></autoref>'

    text = re.sub(r"^( *)Class attributes:$", r"\1Attributes: Class attributes:", text, flags=re.MULTILINE)
    text = "\n".join(_blocks(text.splitlines()))
    parts = re.split(r"(^ *(?:```.*?```|\$\$.*?\$\$)$)", text, flags=re.DOTALL | re.MULTILINE)
    for n in range(0, len(parts), 2):  # between the blocks of code and equations
        parts[n] = re.sub(r":math:`([^`]+)`", r"$\1$", parts[n])
        parts[n] = ROLE.sub(link, parts[n])
        parts[n] = re.sub(r"``(.+?)``", r"`\1`", parts[n], flags=re.DOTALL)
        # "student, teacher: ..." are two attributes of one sentence; Griffe ends a name at a space.
        parts[n] = re.sub(
            r"^( +)(\w+(?:, \w+)+):", lambda m: m[1] + m[2].replace(" ", NO_BREAK) + ":", parts[n], flags=re.M
        )
    return "".join(parts)


def _blocks(lines: list[str]) -> Iterator[str]:
    """The lines, with the blocks of reStructuredText in Markdown's form."""
    n = 0
    while n < len(lines):
        line = lines[n]
        if line.lstrip().startswith(".. math::"):
            body, n = _indented(lines, n + 1, _indent(line))
            first = line.partition("::")[2].strip()
            equation = " ".join(part.strip() for part in (first, *body) if part.strip())
            yield from (" " * _indent(line) + part for part in ("", "$$", equation, "$$", ""))
        elif line.rstrip().endswith("::"):
            body, n = _indented(lines, n + 1, _indent(line))
            margin = min(_indent(part) for part in body if part.strip())
            yield line.rstrip()[:-1]
            yield from (
                " " * _indent(line) + part for part in ("", "```python", *(p[margin:] for p in body), "```", "")
            )
        elif RULER.fullmatch(line):
            end = n + 1
            while end < len(lines) and lines[end].strip():
                end += 1
            yield from _table(lines[n:end])
            n = end
        else:
            yield line
            n += 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _indented(lines: list[str], start: int, margin: int) -> tuple[list[str], int]:
    """The lines from ``start`` that are further in than the margin, blank ones among them, and where they end."""
    end = start
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > margin):
        end += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    body = lines[start:end]
    return body[1:] if body and not body[0].strip() else body, end


def _table(lines: list[str]) -> Iterator[str]:
    """A simple table between rulers; of three, the second ends its head."""
    columns = [match.span() for match in re.finditer("=+", lines[0])]
    last = len(columns) - 1
    rows = [
        [line[start : None if n == last else end].strip() for n, (start, end) in enumerate(columns)]
        for line in lines
        if not RULER.fullmatch(line)
    ]
    if sum(bool(RULER.fullmatch(line)) for line in lines) < 3:
        rows.insert(0, [""] * len(columns))
    rows.insert(1, ["---"] * len(columns))
    margin = " " * columns[0][0]
    yield ""
    yield from (f"{margin}| {' | '.join(row)} |" for row in rows)
    yield ""
