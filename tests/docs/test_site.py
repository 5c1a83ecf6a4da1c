"""The documentation site: it builds strictly, its links lead somewhere, and nothing of the code is missing in it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hkd
from hkd.cli import main
from hkd.methods import methods

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag in ("img", "script") or (tag == "link" and given.get("rel") != "canonical"):
            self.loads += [given[name] for name in ("href", "src") if name in given]


def dead_links(site: Path) -> list[str]:
    """Each link inside a site that names no file of it, or an anchor that its page does not have."""
    pages = {file: Page(file.read_text()) for file in site.rglob("*.html")}
    dead = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            target = file if not path else site / path.lstrip("/") if path.startswith("/") else file.parent / path
            target = Path(os.path.normpath(target / "index.html" if target.is_dir() else target))
            anchor = unquote(parts.fragment)
            found = target.is_file() and (not anchor or target not in pages or anchor in pages[target].anchors)
            if not found:
                dead.append(f"{file.relative_to(site)}: {link}")
    return dead


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'hkd[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_link_of_the_site_is_dead(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > len(methods._entries)
    assert dead_links(site) == []


@pytest.mark.slow
def test_every_method_has_its_page_with_its_equation(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overview = (site / "methods" / "index.html").read_text()
    for name in hkd.list_methods():
        text = (site / "methods" / name / "index.html").read_text()
        assert f'href="{name}/"' in overview, name
        assert text.count('<div class="equation">') >= max(1, (methods[name].__doc__ or "").count(".. math::")), name
        options = set(re.findall(r"<code>(--[\w.-]+)</code>", text.partition('id="settings"')[2].partition("<h2")[0]))
        assert len(options) == len(methods[name].Config.__dataclass_fields__), name
        with pytest.raises(SystemExit):
            main(["distill", "--method", name, "--help"])
        assert options <= set(re.findall(r"--[\w.-]+", capsys.readouterr().out)), "an option that no run takes"


@pytest.mark.slow
def test_every_public_name_has_its_entry(site: Path) -> None:
    entries = [Page(file.read_text()).anchors for file in (site / "api").rglob("*.html")]
    for name in hkd.__all__:
        value = getattr(hkd, name)
        assert any(f"{value.__module__}.{name}" in anchors or f"hkd.{name}" in anchors for anchors in entries), name
        doc = value.__doc__ or f"{name}("
        assert not doc.startswith(f"{name}("), f"{name} has no docstring"


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere_and_hold_no_markup(site: Path) -> None:
    for file in site.rglob("*.html"):
        text, name = file.read_text(), file.relative_to(site)
        assert [url for url in Page(text).loads if urlsplit(url).netloc] == [], name
        if name.parts[0] != "repository":  # files as they are
            for markup in (".. math::", ":func:", ":class:", ":meth:", ":attr:", "<autoref", 'class="arithmatex"'):
                assert markup not in _prose(text), f"{name}: {markup}"


def _prose(text: str) -> str:
    """A page without the source code that it shows."""
    shown = []
    for part in text.split("<details")[:1] + [part.partition("</details>")[2] for part in text.split("<details")[1:]]:
        shown.append(part)
    return "".join(shown)


@pytest.mark.parametrize(
    ("page", "dead"),
    [
        ('<a href="b/">there</a> <p id="x"></p><a href="#x">here</a> <a href="b/#y">there</a>', []),
        ('<a href="c/">nowhere</a>', ["index.html: c/"]),
        ('<a href="#y">nowhere</a>', ["index.html: #y"]),
        ('<a href="b/#x">nowhere</a>', ["index.html: b/#x"]),
        ('<img src="d.png"><a href="https://example.org/none">elsewhere</a>', ["index.html: d.png"]),
    ],
)
def test_dead_links_are_found(tmp_path: Path, page: str, dead: list[str]) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "b" / "index.html").write_text('<h1 id="y">b</h1><a href="..">back</a>')
    assert dead_links(tmp_path) == dead


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="griffe is not installed: pip install 'hkd[docs]'")
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    try:
        from docstrings import to_markdown
    finally:
        sys.path.pop(0)
    text = to_markdown(
        inspect.cleandoc(
            r"""
            What ``x`` and :func:`hkd.distill` are.

            .. math:: a_1
                + b_2

            With :math:`c_3`.

            =====  =====
            term   is
            =====  =====
            a      first
            =====  =====

            Example::

                x = "``"
            """
        )
    )
    link = '<autoref optional identifier="hkd.distill"><code>hkd.distill</code></autoref>'
    assert f"What `x` and {link} are." in text
    assert "\n$$\na_1 + b_2\n$$\n" in text
    assert "With $c_3$." in text
    assert "| term | is |\n| --- | --- |\n| a | first |" in text
    assert 'Example:\n\n```python\nx = "``"\n```' in text
