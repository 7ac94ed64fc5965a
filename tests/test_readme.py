"""The README is correct: its commands exist, its links resolve, and its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwonnx.export import ExportOptions, export_checkpoint

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = ROOT / "tests" / "miniature" / "CARD.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", CARD, *(ROOT / "docs").rglob("*.md")])
# A path of the repository in a page: it begins with one of the folders, and is in backticks.
NAMED_PATH = re.compile(r"`((?:export|runtime|handlers|tests|infra|docs)/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert re.findall(r"\b(?:FIGURES|TODO|TBD|FIXME|XXX)\b", page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    named = NAMED_PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"python -m ((?:infra|tests|qwonnx)[\w.]*\w)", page.read_text(encoding="utf-8"))
    places = {name: ROOT / name.removeprefix("qwonnx.").replace(".", "/") for name in named}
    missing = [
        name
        for name, place in places.items()
        if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists())
    ]
    assert missing == []


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(
        re.findall(
            r"(?:`|^    )make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    assert {"demo", "test"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_commands_and_options_that_are_named_exist() -> None:
    for command, line in re.findall(r"^    qwonnx (\w+)(.*?)(?:  #.*)?$", README, re.MULTILINE):
        run = subprocess.run(
            [sys.executable, "-c", "from qwonnx.handlers.cli.main import main; main()", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        for option in re.findall(r"--[a-z-]+", line):
            assert option in run.stdout, f"qwonnx {command} {option}"


def test_the_python_example_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "qwen-int4", ExportOptions(weights="int4"))
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    example = example.replace("engine.default_sampling", "SamplingParams(max_tokens=8, ignore_eos=True)")
    program = f"from qwonnx.runtime import SamplingParams\n{example}"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout
