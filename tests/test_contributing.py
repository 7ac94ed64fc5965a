"""What a contributor starts with: the hooks, the container and CONTRIBUTING.md name programs and files that exist."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import qwonnx

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_hooks_run_programs_of_the_environment_and_fetch_nothing() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {each["repo"] for each in repositories} == {"local"}
    pinned = {re.split(r"[=<>~]", each)[0] for each in PROJECT["project"]["optional-dependencies"]["dev"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system"
        program, *words = hook["entry"].split()
        assert program.removeprefix(".venv/bin/") in pinned
        assert f"ruff {words[0]}" in makefile, "the hooks check what `make check` checks"


def test_the_container_calls_make() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    program, target = container["postCreateCommand"].split()
    assert (program, target in TARGETS) == ("make", True)
    assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+:3\.\d+-\w+", container["image"]), "an image by name, of a Python"


def test_every_marker_is_explained_and_no_other() -> None:
    declared = {each.partition(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    rows = PAGE.partition("| Marker |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) == declared


@pytest.mark.parametrize(
    "thing",
    ["sampling parameter", "recipe", "target", "checkpoint format", "endpoint", "API", "command", "setting"],
)
def test_what_can_be_added_has_a_list_of_files_with_a_test_among_them(thing: str) -> None:
    (row,) = re.findall(rf"^\| {thing} \| (.*) \|$", PAGE, re.MULTILINE)
    named = re.findall(r"`((?:runtime|export|handlers|infra|docs|tests)(?:/[\w./-]+)?)`", row)
    assert len(named) >= 3
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert any(path.startswith("tests/") for path in named)


def test_the_version_is_the_same_everywhere() -> None:
    """Semantic; the changelog has an entry for it, or collects one for it."""
    version = PROJECT["project"]["version"]
    assert qwonnx.__version__ == version
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version)
    entries = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [entry for entry in entries if entry != "Unreleased"]
    numbers = [tuple(map(int, entry.partition("-")[0].split("."))) for entry in released]
    assert numbers == sorted(numbers, reverse=True), "the newest version comes first"
    assert version in released or (entries[0] == "Unreleased" and version not in released)
    assert all(tuple(map(int, version.partition("-")[0].split("."))) >= number for number in numbers)


def test_every_python_that_is_supported_is_said_alike() -> None:
    classified = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), re.MULTILINE)
    page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| Python \| (3\..*?)\.(?: |$)", page, re.MULTILINE)
    assert re.findall(r"3\.\d+", row) == classified
    assert PROJECT["project"]["requires-python"] == f">={classified[0]}"
    from infra.shipping.locks import PYTHONS

    assert list(PYTHONS) == classified


def test_the_notice_of_what_the_miniature_learnt_is_here() -> None:
    folder = ROOT / "tests" / "miniature"
    text = (folder / "LICENSE.unicode").read_text(encoding="utf-8")
    assert text.startswith("UNICODE LICENSE V3")
    assert "SPDX-License-Identifier: Unicode-3.0" in text
    assert "(LICENSE.unicode)" in (folder / "CARD.md").read_text(encoding="utf-8")


def test_every_field_of_a_log_line_is_on_the_page() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    table = page.partition("## Logs")[2].partition("## Metrics")[0]
    source = (ROOT / "handlers" / "http" / "log_lines.py").read_text(encoding="utf-8")
    fields = set(re.findall(r'fields\["(\w+)"\]|^ +"(\w+)": ', source, re.MULTILINE))
    names = {name for pair in fields for name in pair if name} | {"first_token_seconds", "seconds_per_token"}
    assert len(names) >= 14
    assert [name for name in sorted(names) if f"`{name}`" not in table] == []
