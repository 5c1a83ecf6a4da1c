"""Trained networks that others publish: what they are, where they are, and the command that uses each.

Nothing is downloaded here; the list is ``pretrained.yaml`` beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

LIST = Path(__file__).with_suffix(".yaml")
UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A file of weights that somebody publishes.

    Attributes:
        name: of the entry.
        source: key of who publishes it.
        title: of who publishes it.
        network: as ``--teacher`` and ``--student`` take it.
        dataset: what it was trained on; a data set of this package where it has classes.
        classes: of its classifier, 0 for a backbone whose head has to be trained.
        top1: the published accuracy in percent, None where none is known for certain.
        note: what there is to say of ``top1``.
        published: where ``top1`` is said.
        fetch: from where its source's files are had, with NAME and FILE for the entry's name and file.
        file: its name.
        format: what is in it.
        sha256: the digits of its digest that are known: 64, the first 8, or None.
        licence: of the repository that publishes it, None where none is known for certain.
        mean, std: of the channels of the images that it was trained on.
        student: a network that may learn from it.
        command: that uses the file.
    """

    name: str
    source: str
    title: str
    network: str
    dataset: str
    classes: int
    top1: float | None
    note: str = ""
    published: str
    fetch: str
    file: str
    format: str
    sha256: str | None = None
    licence: str | None
    mean: list[float]
    std: list[float]
    student: str = ""
    command: str

    @property
    def accuracy(self) -> str:
        """The published accuracy, as tables show it."""
        return UNKNOWN if self.top1 is None else f"{self.top1} ({self.note})" if self.note else str(self.top1)


def list_pretrained() -> list[Pretrained]:
    """All entries, in the order of the file."""
    import yaml

    content = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    entries = [Pretrained(**content["sources"][entry["source"]] | entry) for entry in content["checkpoints"]]
    return [replace(entry, command=entry.command.format_map(vars(entry))) for entry in entries]


def overview(style: Literal["simple", "github"] = "simple") -> str:
    """The table of all entries, each with the command that uses it."""
    from tabulate import tabulate

    lines = [
        [entry.name, entry.network, entry.dataset, entry.accuracy, entry.title, entry.command]
        for entry in list_pretrained()
    ]
    headers = ["name", "network", "data set", "top-1 in %", "source", "command"]
    return tabulate(lines, headers, style, disable_numparse=True)


def files() -> str:
    """The file, the known digits of the digest and the licence of each entry, as a table in Markdown."""
    from tabulate import tabulate

    lines = [[entry.name, entry.file, entry.sha256 or UNKNOWN, entry.licence or UNKNOWN] for entry in list_pretrained()]
    return tabulate(lines, ["name", "file", "SHA-256", "licence"], "github", disable_numparse=True)


def sources() -> str:
    """A line for each source: where its files are had, what is in them, and where their accuracy is published."""
    return "\n".join(
        {
            entry.title: f"- {entry.title}: {entry.fetch}. Format: {entry.format}. Mean {entry.mean} and deviation "
            f"{entry.std} of the channels. Top-1: {entry.published}."
            for entry in list_pretrained()
        }.values()
    )
