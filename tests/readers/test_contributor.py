"""A contributor: a clone, `make quick`, one test, a change as CONTRIBUTING.md says, the documentation."""

from __future__ import annotations

import re

import pytest

from tests.readers.reader import ROOT, Reader
from tests.test_adding_a_parameter import ADDED

pytestmark = pytest.mark.soak

READER = "contributor"


def test_make_quick_passes(reader: Reader) -> None:
    said = reader.run("make quick", timeout=2400)
    assert re.search(r"\d+ passed", said)
    assert "failed" not in said
    assert "Success: no issues found" in said


def test_the_demonstration_answers(reader: Reader) -> None:
    assert "answer: Ujerumani" in reader.run("make demo-once")


def test_some_tests_as_the_page_says(reader: Reader) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (\.venv/bin/python -m pytest [^#\n]+)", page, re.MULTILINE)
    assert lines
    for line in lines:
        assert re.search(r"[1-9]\d* passed", reader.run(line))


def test_a_commit_passes_the_hooks_and_a_bad_one_does_not(reader: Reader) -> None:
    if not (reader.clone / ".pre-commit-config.yaml").exists():
        pytest.skip("there are no hooks")
    reader.run("pip install --quiet pre-commit && pre-commit install")
    begin = "git config user.name A && git config user.email a@example.com && "
    reader.run(f"{begin}printf '\\nVALUE = 1\\n' >> infra/demo.py && git commit --quiet --all --message good")
    reader.run("printf 'import  os\\n' > infra/bad.py && git add infra/bad.py")
    assert "ruff" in reader.run("git commit --quiet --message bad", status=1)
    reader.run("git reset --quiet --hard HEAD~1")


def test_a_parameter_is_added_with_the_files_of_the_page(reader: Reader) -> None:
    for name, (before, text) in ADDED.items():
        path = reader.clone / name
        content = path.read_text(encoding="utf-8")
        assert before in content
        path.write_text(content.replace(before, text + before, 1), encoding="utf-8")
    reader.run("python -m infra.sampling_table")
    assert len(reader.run("git diff --name-only").split()) == 5
    assert "passed" in reader.run(
        "python -m pytest -q tests/runtime/sampling tests/handlers/cli/test_sampling_options.py"
    )
    assert "--top-a" in reader.run("qwonnx generate --help")
    reader.run("make check", timeout=1200)
    reader.run("git checkout --quiet .")


def test_the_documentation_is_built_without_a_warning(reader: Reader) -> None:
    said = reader.run("make docs")
    assert not re.search("warning", said, re.IGNORECASE), said
    reader.run("test -s build/site/index.html")


def test_nothing_is_left_that_git_does_not_know(reader: Reader) -> None:
    assert reader.run("git status --porcelain") == ""
