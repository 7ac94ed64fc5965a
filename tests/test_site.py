"""The documentation site builds without a warning, asks no other machine, and leads on from every page."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from infra.site.plots import DOCS, PICTURES
from tests.handlers.http.chromium import CHROMIUM

ROOT = DOCS.parent
OUTSIDE = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "examples/README.md", "infra/gpu/README.md")
PAGES = sorted([*(ROOT / name for name in OUTSIDE), *DOCS.glob("*.md"), DOCS / "decisions" / "README.md"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "infra/site/mkdocs.yml", "-d", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_every_page_is_there_and_in_the_search(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        built = "index.html" if page.name == "README.md" else f"{page.stem}.html"
        assert (site / built).is_file(), page
        assert page.name == "README.md" or f'"{built}"' in index, page
    for made in ("reference/cli.html", "reference/python.html", "security.html", "miniature.html"):
        assert (site / made).is_file()
    assert "qwonnx serve" in (site / "reference" / "cli.html").read_text(encoding="utf-8")


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are from the server's root
            continue
        for link in re.findall(r'(?:href|src)="([^"#?]+)["#?]', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_a_page_loads_nothing_from_other_machines(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect|icon)"[^>]* href="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* href="([^"]+)"[^>]* rel="(?:stylesheet|preconnect|icon)"', text)
        assert [each for each in loaded if re.match(r"https?:|//", each)] == [], page


@pytest.mark.soak
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed")
def test_the_search_works_from_the_disk(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "decisions" / "0002-own-operators.html").as_uri())
        page.locator("input[name=query]").first.fill("capsules conversation")
        found = page.locator("a.md-search-result__link").first
        found.wait_for(timeout=20_000)
        found.click()
        page.wait_for_load_state()
        assert page.locator("h1").first.inner_text()
        assert "decisions" not in page.url
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_ends_with_a_next_step(page: Path) -> None:
    last = page.read_text(encoding="utf-8").strip().split("\n\n")[-1]
    assert last.startswith("**Next:** ")
    assert "](" in last


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_of_their_tables(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PICTURES[name](), "run `python -m infra.site.plots`"
