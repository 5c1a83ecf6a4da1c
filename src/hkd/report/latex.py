"""Tables for a paper: LaTeX with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Sequence

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "→": r"$\rightarrow$", "…": r"\dots{}", "−": "$-$",
}  # fmt: skip
BOLD = "**"
"""Around a cell of a Markdown table that is bold."""


def escaped(text: str) -> str:
    """A text that LaTeX prints as it is, on one line."""
    return " ".join("".join(SPECIAL.get(letter, letter) for letter in text).split())


def tabular(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A ``table`` whose first column is text and the others are centred.

    Args:
        heads: of the columns.
        rows: cells of Markdown: plain text, bold or not.
        caption: below the table.
    """
    lines = [" & ".join(map(_cell, row)) + r" \\" for row in (heads, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \begin{{tabular}}{{l{'c' * (len(heads) - 1)}}}",
            r"    \toprule",
            f"    {lines[0]}",
            r"    \midrule",
            *(f"    {line}" for line in lines[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"  \caption{{{escaped(caption)}}}",
            r"\end{table}",
        ]
    )


def document(tables: Sequence[str], remarks: Sequence[str]) -> str:
    """Tables to be read with ``\\input``, below remarks that are not printed."""
    comments = [f"% {' '.join(remark.split())}" for remark in (r"Needs \usepackage{booktabs}.", *remarks)]
    return "\n\n".join(["\n".join(comments), *tables]) + "\n"


def _cell(text: str) -> str:
    """A cell. One that starts with a bracket is kept from being read as an argument of the line break before it."""
    if len(text) > 2 * len(BOLD) and text.startswith(BOLD) and text.endswith(BOLD):
        return rf"\textbf{{{escaped(text[len(BOLD) : -len(BOLD)])}}}"
    return f"{{}}{escaped(text)}" if text.startswith(("[", "*")) else escaped(text)
