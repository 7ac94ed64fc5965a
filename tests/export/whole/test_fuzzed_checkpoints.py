"""Thousands of malformed checkpoints: each is soon refused in one line, in little memory, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted

# For an afternoon's search: QWONNX_TEST_FUZZ_SCALE=2000 QWONNX_TEST_FUZZ_SEED=7 \
#   pytest tests/export/whole/test_fuzzed_checkpoints.py
SEED = int(os.environ.get("QWONNX_TEST_FUZZ_SEED", "1"))
SCALE = int(os.environ.get("QWONNX_TEST_FUZZ_SCALE", "30"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of fuzz_process.py, which is a separate process, because some cases may end it."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.export.whole.fuzz_process", str(folder), str(SEED), str(SCALE)]
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600 + 2 * SCALE, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_every_malformed_checkpoint_is_refused_in_one_line_and_leaves_nothing(report: Any) -> None:
    assert report["problems"] == []


def test_the_corpus_reaches_every_reader_and_leaves_some_checkpoints_sound(report: Any) -> None:
    assert report["cases"] > 1000
    outcomes = report["outcomes"]
    expected = {"ConfigError", "UnsupportedModelError", "TensorFormatError", "MissingTensorError", "CheckpointError"}
    assert outcomes.keys() >= {*expected, "accepted"}
    # Damage that most often does no harm tests nothing.
    assert outcomes["accepted"] < report["cases"] / 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_one_object_or_a_reason_of_one_line(content: bytes) -> None:
    reason = ""
    try:
        assert parse_object(content) == json.loads(content)
    except StrictJsonError as error:
        reason = str(error)
    assert reason.isprintable()


@given(JSON | st.text())
def test_any_value_is_quoted_in_one_short_line(value: Any) -> None:
    assert quoted(value).isprintable()
    assert len(quoted(value)) <= 120


def test_values_that_are_too_deep_or_too_large_are_quoted_in_part() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, ["x"] * 10**6, {str(n): n for n in range(10**5)}, "y" * 10**7, 10**4000):
        assert len(quoted(value)) <= 120
