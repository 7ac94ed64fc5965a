"""Hooks of mkdocs: pages from outside docs/, pages made from the code, and links between them.

A page of the repository may link to any file of it. Here a link to a page leads to this page of the site, and one to
another file to a copy of the file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from infra.site import reference

ROOT = Path(__file__).resolve().parent.parent.parent
# Pages outside docs/, and their places in the site.
PAGES = {
    "README.md": "what-it-is.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/miniature/CARD.md": "miniature.md",
    "infra/gpu/README.md": "gpu-check.md",
    "examples/README.md": "examples.md",
}
GENERATED: dict[str, Callable[[], str]] = {
    "reference/cli.md": reference.command_line,
    "reference/python.md": reference.python,
}
# The theme's offline search would take this script from another machine.
_FOREIGN_SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
_SHIM = "assets/file_worker.js"
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)]*)?\))")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Decisions are listed by their files."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert config.nav is not None
    config.nav[-1] = {"Decisions": [f"decisions/{name}" for name in decisions]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of other folders and of the code, and the files that pages link to."""
    for source, place in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=_linked(text, source, files, config)))
    for place, make in GENERATED.items():
        files.append(File.generated(config, place, content=make()))
    shim = Path(__file__).with_name("file_worker.js").read_text(encoding="utf-8")
    files.append(File.generated(config, _SHIM, content=shim))
    return files


def on_post_page(output: str, *, page: Any, config: MkDocsConfig) -> str:
    """Take the script of the offline search from the site itself."""
    place = posixpath.relpath(_SHIM, posixpath.dirname(page.url) or ".")
    return output.replace(_FOREIGN_SHIM, f'<script src="{place}"></script>')


def on_post_template(output: str, *, template_name: str, config: MkDocsConfig) -> str:
    """The same for the page of missing pages, which a server gives."""
    return output.replace(_FOREIGN_SHIM, "")


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links of a page of docs/ that leave it."""
    if page.file.src_uri in PAGES.values() or page.file.src_uri in GENERATED:
        return markdown
    return _linked(markdown, f"docs/{page.file.src_uri}", files, config)


def _linked(text: str, source: str, files: Files, config: MkDocsConfig) -> str:
    """The text of the repository's file `source` with the links of its place in the site."""
    here = posixpath.dirname(PAGES.get(source, source.removeprefix("docs/")))

    def target(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if re.match(r"[a-z]+:", link):
            return match.group()
        named = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        place = PAGES.get(named, named.removeprefix("docs/"))
        if named == "docs/decisions":
            place = "decisions/README.md"
        elif named not in PAGES and not (named.startswith("docs/") and files.get_file_from_path(place)):
            place = f"files/{named}"
            if files.get_file_from_path(place) is None and (ROOT / named).is_file():
                files.append(File.generated(config, place, content=(ROOT / named).read_bytes()))
        return f"{before}{posixpath.relpath(place, here or '.')}{after}"

    pieces = _CODE.split(text)  # odd ones are code
    return "".join(piece if index % 2 else _LINK.sub(target, piece) for index, piece in enumerate(pieces))
