"""The examples work as they are: the programs, with the miniature for a model, and the notebooks from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EXPECTED = {
    "agent.py": r"set_light\(.*\) -> \{'watts': 35\}\n.*35 watts",
    "ask_document.py": r"of them not read again.*\n(.*\n)+.* [1-9][\d,]* of them not read again",
    "extract_fields.py": r"^\{[^{}]*\}\n(order|question|complaint) for \w+day",
    "serve_and_ask.py": r"^ნორვეგია$",
    "translate_table.py": r"^term,language,name\nGermany,Swahili,Ujerumani\n(.*\n)+Norway,Georgian,ნორვეგია\n",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a cache folder of their own, where the first one exports the miniature."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "QWONNX_CACHE": str(cache), "QWONNX_SPIN": "0", "QWONNX_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_program_says_what_it_should(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[name], done.stdout, re.MULTILINE), done.stdout


def test_the_notebooks_run_from_top_to_bottom(environment: dict[str, str], tmp_path: Path) -> None:
    notebooks = sorted(map(str, EXAMPLES.glob("*.ipynb")))
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=600", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), *notebooks],
        cwd=EXAMPLES,
        env={**environment, "JUPYTER_RUNTIME_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(notebooks)} passed" in done.stdout


def test_every_example_is_listed_and_tried() -> None:
    listed = set(re.findall(r"\]\((\w+\.\w+)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(EXPECTED) == {path.name for path in EXAMPLES.glob("*.py")}


def test_notebooks_are_kept_without_outputs() -> None:
    for notebook in EXAMPLES.glob("*.ipynb"):
        assert '"outputs": [\n' not in notebook.read_text(), f"{notebook.name}: clear its outputs"
