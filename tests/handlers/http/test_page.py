"""The page at /, without a browser: its headers, who gets it, and what its file may not hold."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http.page import content_security_policy, wants_html
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast

PAGE = Path(__file__).parents[3] / "handlers" / "http" / "page.html"
TEXT = PAGE.read_text(encoding="utf-8")
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}  # Chromium's and Firefox's


class _Elements(HTMLParser):
    """Start tags with their attributes, and the texts of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in self.inline and data.strip():
            self.inline[self.tags[-1][0]].append(data)


@pytest.fixture(scope="module")
def elements() -> _Elements:
    parser = _Elements()
    parser.feed(TEXT)
    return parser


def _app(counting_folder: Path, **settings: Any) -> Starlette:
    return create_app(ModelHost(lambda: Engine.open(counting_folder)), ServerSettings(**settings))


def test_browsers_get_the_page_and_others_the_json(counting_folder: Path) -> None:
    app = _app(counting_folder, ui=True)
    page = ask(app, "GET", "/", headers=BROWSER)
    assert (page.status_code, page.text) == (200, TEXT)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    head = ask(app, "HEAD", "/", headers=BROWSER)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(TEXT.encode())))
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.9", "text/html;q=0", ""):
        assert ask(app, "GET", "/", headers={"accept": accept}).json()["name"] == "qwonnx"
    assert ask(app, "POST", "/", headers=BROWSER).status_code == 405
    assert ask(app, "GET", "/version", headers=BROWSER).json().keys() == {"version"}


def test_there_is_no_page_unless_it_is_asked_for(counting_folder: Path) -> None:
    assert not ServerSettings().ui
    assert ServerSettings.from_environment({"QWONNX_UI": "1"}).ui
    assert ask(_app(counting_folder), "GET", "/", headers=BROWSER).json()["name"] == "qwonnx"


def test_the_page_needs_no_key_and_everything_else_does(counting_folder: Path) -> None:
    app = _app(counting_folder, ui=True, api_key="secret")
    assert ask(app, "GET", "/", headers=BROWSER).text == TEXT
    assert ask(app, "GET", "/").status_code == 401
    assert ask(app, "GET", "/v1/models", headers=BROWSER).status_code == 401


def test_the_page_is_also_below_a_base_path(counting_folder: Path) -> None:
    app = _app(counting_folder, ui=True, base_path="/prod")
    for path in ("/", "/prod", "/prod/"):
        assert ask(app, "GET", path, headers=BROWSER).text == TEXT


def test_its_headers_allow_its_own_script_and_style_and_no_others(counting_folder: Path, elements: _Elements) -> None:
    headers = ask(_app(counting_folder, ui=True), "GET", "/", headers=BROWSER).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["vary"] == "accept"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "data:"
    assert policy["require-trusted-types-for"] == "'script'"
    for kind, contents in elements.inline.items():
        assert len(contents) == 1
        digest = base64.b64encode(hashlib.sha256(contents[0].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in headers["content-security-policy"]
    assert content_security_policy(TEXT) == headers["content-security-policy"]


def test_its_file_is_small_and_asks_no_other_machine(elements: _Elements) -> None:
    assert len(PAGE.read_bytes()) < 60_000
    assert "\r" not in TEXT
    assert not re.search(r"(https?|wss?):?//\w", TEXT)
    for tag, attributes in elements.tags:
        assert "src" not in attributes, tag
        assert tag not in ("iframe", "object", "embed", "base", "img"), tag
        if "href" in attributes:
            assert re.match(r"#|data:image/png;base64,", attributes["href"] or ""), attributes
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)


def test_it_never_makes_html_or_code_of_a_text() -> None:
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert name not in TEXT
    assert "createContextualFragment" not in TEXT


def test_every_field_of_the_file_has_a_name(elements: _Elements) -> None:
    labelled = {attributes.get("for") for tag, attributes in elements.tags if tag == "label"}
    for tag, attributes in elements.tags:
        if tag in ("input", "textarea", "select"):
            assert attributes["id"] in labelled or attributes.get("aria-label"), attributes
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/html", True),
        ("TEXT/HTML ; Q=0.5", True),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("application/json, text/html", True),
        ("application/json, text/html;q=0.5", False),
        ("text/html;q=0.000", False),
        ("text/html;q=.5", False),
        ("text/html;q=nan", False),
        ("*/*", False),
        ("text/*", False),
        (",,;q=,", False),
    ],
)
def test_html_is_wanted_by_name(accept: str, wanted: bool) -> None:
    assert wants_html([accept]) is wanted
    assert wants_html(["image/png", accept]) is wanted
