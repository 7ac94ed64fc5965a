"""Only the folder of an API has its names: code that APIs share, and the command line, do not have OpenAI's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = ROOT / "handlers"
APIS = ("openai", "anthropic", "responses", "ollama")
SHARED = sorted(path for folder in ("chat", "http", "cli", "functions") for path in (HANDLERS / folder).rglob("*.py"))
OUTSIDE = sorted(path for path in HANDLERS.rglob("*.py") if path.relative_to(HANDLERS).parts[0] not in APIS)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", OUTSIDE, ids=_name)
def test_only_the_application_imports_an_api(path: Path) -> None:
    folders = tuple(f"qwonnx.handlers.{api}." for api in APIS)
    imported = [module for module in _imports(path) if f"{module}.".startswith(folders)]
    assert all(module.endswith(f".api.{module.split('.')[2].upper()}") for module in imported)
    assert path == HANDLERS / "app.py" or not imported


@pytest.mark.parametrize("path", OUTSIDE, ids=_name)
def test_an_error_body_of_openais_is_written_in_its_folder_alone(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"invalid_request_error|rate_limit_error|server_error|x-should-retry|[\"']param[\"']", source)
    assert "ErrorBody" not in source


# These name a path or a field that a platform defines, or greet with an example.
WITH_NAMES = ("batch.py", "bench.py", "kserve.py", "partner.py", "runpod.py", "serve.py")


@pytest.mark.parametrize("path", [path for path in SHARED if path.name not in WITH_NAMES], ids=_name)
def test_what_apis_share_has_no_word_of_openais(path: Path) -> None:
    words = r"openai|chat\.completion|chatcmpl|\[DONE\]|finish_reason[\"' ]*[:=]* *[\"'](stop|length|tool_calls)"
    assert not re.search(words, path.read_text(encoding="utf-8"), re.IGNORECASE)


def test_the_exporter_imports_no_handler() -> None:
    imported = {module for path in (ROOT / "export").rglob("*.py") for module in _imports(path)}
    assert [module for module in sorted(imported) if module.startswith("qwonnx.handlers")] == []
