"""Links from the documents to other files of the repository, which work there and on the site.

A document names a source file, an example or a recipe by its path. The site has a page for each file or folder that is
linked to, so that it shows the files that it was built from and needs no address of a repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,}).*?^ *(?P=fence)|`[^`\n]+`)|\]\((?P<target>[^)\s]+)\)", re.DOTALL | re.M
)
FOLDER = "repository"
ALWAYS = ("CHANGELOG.md",)  # in the navigation
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}

_origins: dict[str, str] = {}
"""The path in the repository of each page that is made here, by its source on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes a page of each file and folder outside of the documents that a page links to."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    _origins.clear()
    pending = list(ALWAYS)
    for file in files.documentation_pages():
        pending += _outside(file.content_string, posixpath.join(docs.name, file.src_uri), files, root, docs)
    while pending:
        path = pending.pop()
        uri = _uri(path, root)
        if uri in _origins:
            continue
        _origins[uri] = f"{path}/" if (root / path).is_dir() else path
        text = _text(root / path, path)
        files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
        pending += _outside(text, _origins[uri], files, root, docs)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links that leave the documents point to the pages of these files."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    origin = _origins.get(page.file.src_uri, posixpath.join(docs.name, page.file.src_uri))
    here = posixpath.dirname(page.file.src_uri)

    def on_site(path: str, anchor: str) -> str | None:
        inside = path.removeprefix(f"{docs.name}/")
        uri = inside if path != inside and inside in files.src_uris else _uri(path, root)
        if uri not in files.src_uris:
            return None
        anchor = anchor if uri.endswith(Path(path).name) else ""  # a line of code has none
        return posixpath.relpath(uri, here or ".") + (f"#{anchor}" if anchor else "")

    return LINK.sub(lambda match: _rewritten(match, origin, on_site), markdown)


def _rewritten(match: re.Match[str], origin: str, on_site: Callable[[str, str], str | None]) -> str:
    target = match["target"]
    if not target or (found := _path(target, origin)) is None or (new := on_site(*found)) is None:
        return match[0]
    return f"]({new})"


def _path(target: str, origin: str) -> tuple[str, str] | None:
    """The path in the repository and the anchor that a link in a file names; None for one to elsewhere."""
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:|/", path):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)), anchor


def _outside(text: str, origin: str, files: Files, root: Path, docs: Path) -> Iterator[str]:
    """The paths in the repository that a text links to and that are no files of the site."""
    for match in LINK.finditer(text):
        if match["target"] and (found := _path(match["target"], origin)):
            path = found[0]
            inside = path.removeprefix(f"{docs.name}/")
            on_site = path != inside and inside in files.src_uris
            if not on_site and not path.startswith("..") and (root / path).exists():
                yield path


def _uri(path: str, root: Path) -> str:
    """Where the page of a file or folder is on the site."""
    if (root / path).is_dir():
        return posixpath.join(FOLDER, path, "index.md")
    return posixpath.join(FOLDER, path if path.endswith(".md") else f"{path}.md")


def _text(file: Path, path: str) -> str:
    """A page: of a folder a list of its files, of a document itself, of any other file its text."""
    if file.suffix == ".md":
        return file.read_text()
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if file.is_dir():
        names = sorted(entry.name for entry in file.iterdir() if entry.is_file() and not entry.name.startswith("."))
        return head + "".join(f"- [{name}]({name})\n" for name in names)
    return f"{head}``````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()}\n``````\n"
