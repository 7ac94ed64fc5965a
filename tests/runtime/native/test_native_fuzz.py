"""Seconds of mutated calls and of artifacts, under sanitizers; `make soak` runs it, `make native-fuzz` for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from qwonnx.runtime.native.build import find_compiler

SECONDS = os.environ.get("QWONNX_TEST_NATIVE_FUZZ_SECONDS", "10")


@pytest.mark.soak  # it compiles the kernels twice
def test_mutated_calls_and_artifacts_have_no_finding() -> None:
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    command = [sys.executable, "-m", "infra.native_fuzz", "--seconds", SECONDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if re.match(r"native_fuzz: .* fails: .*(-lasan|-lubsan|-fsanitize)", done.stderr, re.DOTALL):
        pytest.skip("the C++ compiler has no sanitizers")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    cases = re.search(r"(\d+) cases, no finding", done.stdout)
    files = re.search(r"files: (\d+) answered, (\d+) refused", done.stdout)
    assert cases, done.stdout
    assert int(cases[1]) > 30
    assert files, done.stdout
    assert int(files[1]) > 0
    assert int(files[2]) > 0
