"""Equations as MathML, which browsers show by themselves: a page loads no script for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
LOGARITHM = re.compile(r"<mi>log</mi>(?!<mo[^>]*>&#x00028;)")
"""Of something without brackets, which TeX sets with a space between."""


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Replaces each equation that Markdown has found. One that cannot be read ends the build."""

    def mathml(match: re.Match[str]) -> str:
        tag, latex = match[1], html.unescape(match[2]).strip()
        try:
            made = convert(latex, display="block" if tag == "div" else "inline")
        except Exception as error:  # of many kinds, most without a message
            raise PluginError(f"{page.file.src_uri}: cannot read the equation {latex}") from error
        if unknown := re.search(r">(\\\w+)<", made):  # which is written as it is
            raise PluginError(f"{page.file.src_uri}: no command {unknown[1]} in the equation {latex}")
        made = LOGARITHM.sub(r'\g<0><mspace width="0.17em"/>', made)
        return f'<{tag} class="equation">{made}</{tag}>'

    return EQUATION.sub(mathml, content)
