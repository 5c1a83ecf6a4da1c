"""The tutorials and the FAQ do what they say: their code is run page by page, as a reader would, in an empty folder.

``python`` blocks are executed in order and share their names; ``sh`` blocks are commands, one a line. A block that
begins with ``# NAME.EXT`` is a file, and is saved. ``<!-- not run: REASON -->`` above a block keeps it from being run.
Of all blocks the fast test checks that Python compiles and that hkd accepts the options of each command.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hkd.cli import main
from hkd.methods import methods

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "faq.md"]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w-]+\.\w+)\n")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


class Block(NamedTuple):
    language: str
    text: str
    runs: bool

    @property
    def file(self) -> str | None:
        """The file that a reader saves the block as."""
        match = FILE.match(self.text)
        return match[1] if match else None

    @property
    def commands(self) -> list[str]:
        return self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else []


def blocks(page: Path) -> list[Block]:
    return [Block(language, text, not mark) for mark, language, text in BLOCK.findall(page.read_text())]


def of_hkd(command: str) -> list[str] | None:
    """What follows ``hkd`` in a command, whatever starts it: srun, torchrun -m hkd --, a variable."""
    words = shlex.split(command, comments=True)
    return [word for word in words[words.index("hkd") + 1 :] if word != "--"] if "hkd" in words else None


def status(words: list[str]) -> int | str | None:
    try:
        return main(words)
    except SystemExit as ended:  # some commands end so once they have printed their configuration
        return ended.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, from which modules are imported as a reader's would be, and forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(methods, "_entries", {name: methods[name] for name in methods})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@each_page
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    assert blocks(page)
    assert len(blocks(page)) * 2 == len(re.findall(r"^```", page.read_text(), flags=re.MULTILINE))
    assert {block.language for block in blocks(page)} <= {"python", "sh", "yaml", "text"}


@each_page
def test_python_compiles_and_commands_have_their_options(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.language == "python":
            compile(block.text, page.name, "exec")
        for command in block.commands:
            words = of_hkd(command)
            if words and words[0] != "list":
                assert status([*words, "--print-config"]) == 0, command


def test_an_option_that_is_not_there_is_noticed() -> None:
    assert of_hkd("srun torchrun -m hkd -- distill --epoch 3  # no s") == ["distill", "--epoch", "3"]
    assert status(["distill", "--epoch", "3", "--print-config"]) == 2


@pytest.mark.slow
@each_page
def test_the_page_runs(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.runs:
            run(block, names)


def run(block: Block, names: dict[str, Any]) -> None:
    if block.file:
        Path(block.file).write_text(block.text)
    elif block.language == "python":
        exec(block.text, names)
    for command in block.commands:
        if words := of_hkd(command):
            assert main(words) == 0, command
        else:
            subprocess.run(command, shell=True, check=True)
