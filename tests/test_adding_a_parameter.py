"""A sampling parameter is declared once: a new one is added in a copy of the tree, and everything knows it.

CONTRIBUTING.md has the same list of files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parent.parent
MOST_FILES = 5
TABLE = "docs/sampling.md"  # infra.sampling_table writes it anew

# What is added, by file: before which text, and what.
ADDED = {
    "runtime/sampling/params.py": (
        "    presence_penalty: float = declared(",
        """    top_a: float = declared(
        0.0,
        Kind.NUMBER,
        "Keep tokens at least as likely as this times the square of the largest probability.",
        in_apis("top_a", Api.OPENAI, Api.RESPONSES, Api.OLLAMA),
        bounds=Meta(ge=0, le=1),
        low=0.0,
        high=1.0,
    )
""",
    ),
    "runtime/sampling/sampler.py": (
        "        place = _place(weights, self._random())",
        """        if params.top_a > 0:
            # p >= a * max(p) ** 2, where p is a weight divided by their sum, and the largest weight is 1.
            least = params.top_a / weights.sum(dtype=np.float64)
            kept, weights = _narrow(kept, weights, np.flatnonzero(weights >= least))
""",
    ),
    "tests/runtime/sampling/test_sampler.py": (
        "def test_the_repetition_penalty_is_that_of_transformers_over_prompt_and_answer(",
        """def test_top_a_cuts_what_is_far_from_a_sure_token() -> None:
    probabilities = np.array([0.8, 0.15, 0.04, 0.01])
    chosen = {
        Sampler(SamplingParams(top_a=0.1, seed=seed), [], 4).sample(np.log(probabilities).astype(np.float32))
        for seed in range(200)
    }
    assert chosen == {0, 1}  # 0.1 * 0.8 ** 2 is 0.064


""",
    ),
    "CHANGELOG.md": ("- `qwonnx generate`", "- The sampling parameter `top_a`.\n"),
}
# Run in the copy; prints nothing.
CHECKS = """
import dataclasses, inspect, json
from qwonnx.runtime.sampling import params, sampler
from infra.sampling_table import PAGE, with_table

PAGE.write_text(with_table(PAGE.read_text()))
assert "| `top_a` | Keep tokens at least as likely" in PAGE.read_text()

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.ollama import requests as ollama
from qwonnx.handlers.ollama.protocol import ChatRequest
from qwonnx.handlers.openai import chat_request, engine_request
from qwonnx.handlers.responses import request as responses

def body(**fields):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()

def sampling(**fields):
    return engine_request.neutral(chat_request.parse(body(**fields))).sampling

assert sampling(top_a=0.2)["top_a"] == 0.2
assert responses.understood(b'{"model": "m", "input": "Hi", "top_a": 0.2}').neutral.sampling["top_a"] == 0.2
assert ollama.chat(ollama.parse(body(options={"top_a": 0.2}), ChatRequest)).sampling["top_a"] == 0.2
for wrong in (2, "x"):
    try:
        sampling(top_a=wrong)
    except ServiceError as error:
        assert error.parameter == "top_a", error
    else:
        raise AssertionError(wrong)

from qwonnx.handlers.library.request import chat_request as of_python

assert of_python("Hi", sampling={"top_a": 0.2}).neutral.sampling["top_a"] == 0.2

from qwonnx.handlers.app import APIS
from qwonnx.handlers.http.openapi import document, operations

schemas = document(operations(APIS), ["m"])["components"]["schemas"]
assert {name for name, schema in schemas.items() if "top_a" in schema.get("properties", {})} == {
    "ChatCompletionRequest", "TextCompletionRequest", "ResponsesRequest", "Options",
}

from qwonnx.handlers.cli.command_line import spec_of
from qwonnx.handlers.cli.help_text import help_text

for command in ("generate", "chat"):
    said = " ".join(help_text(spec_of(command)).split())
    assert "--top-a NUMBER Keep tokens at least as likely as this times the square" in said, said

import numpy as np
SamplingParams, Sampler = params.SamplingParams, sampler.Sampler
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The parts of the tree that list parameters, installed nowhere."""
    unread = shutil.ignore_patterns("__pycache__", "*.so", "sources", "page.html")
    for name in ("runtime", "handlers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unread)
    for name in (TABLE, "infra/__init__.py", "infra/sampling_table.py", "CHANGELOG.md", *ADDED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    package = tmp_path / "installed" / "qwonnx"
    package.mkdir(parents=True)
    for name in ("runtime", "handlers"):
        (package / name).symlink_to(tmp_path / name)
    (package / "__init__.py").symlink_to(tmp_path / "handlers" / "library" / "package" / "__init__.py")
    return tmp_path


def test_a_new_parameter_touches_five_files_and_everything_knows_it(copy: Path) -> None:
    for name, (before, text) in ADDED.items():
        content = (copy / name).read_text(encoding="utf-8")
        assert before in content, f"{name} has changed: adapt this test"
        (copy / name).write_text(content.replace(before, text + before, 1), encoding="utf-8")
    _, new_test = ADDED["tests/runtime/sampling/test_sampler.py"]
    program = f"{CHECKS}\n{new_test}\ntest_top_a_cuts_what_is_far_from_a_sure_token()\n"
    path = os.pathsep.join([str(copy / "installed"), str(copy)])
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr
    changed = [name for name in (*ADDED, TABLE) if (copy / name).read_bytes() != (ROOT / name).read_bytes()]
    assert sorted(changed) == sorted([*ADDED, TABLE])
    assert len(changed) <= MOST_FILES


def test_the_page_has_the_table_of_parameters() -> None:
    from infra.sampling_table import PAGE, with_table

    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "python -m infra.sampling_table writes it anew"


def test_contributors_find_the_same_list_of_files() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| sampling parameter"))
    assert set(re.findall(r"`([\w/.-]+/[\w.-]+|CHANGELOG\.md)`", row)) == {*ADDED, TABLE}
