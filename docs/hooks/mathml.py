"""Equations as MathML, which browsers show by themselves: a page loads no script for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces each equation that Markdown has found. One that cannot be read ends the build."""
    return EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    tag, latex = match[1], html.unescape(match[2]).strip()
    made = convert(latex, display="block" if tag == "div" else "inline")
    return f'<{tag} class="equation">{made}</{tag}>'
