"""The kernels for AVX-512 and AMX, on processors without them: the same tests, with a library in which the instructions
are functions (infra/native_emulation).

The set amx has its own products for a dozen tokens and more; everything else is that of avx512. So all tests run with
amx, and with avx512 only those of linear layers. `make soak` runs those that are not of linear layers.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from infra.native_emulation.build import EMULATED
from qwonnx.runtime.native.build import BuildError, build, find_compiler
from qwonnx.runtime.native.library import VARIABLE

TESTS = Path(__file__).parent
LINEAR = ["test_linear.py"]
ATTENTION = ["test_attention.py", "test_attention_codes.py", "test_attention_inputs.py"]
LAYERS = ["test_linear_attention.py", "test_delta_net.py", "test_norm_linear.py"]
OTHERS = ["test_experts.py", "test_mixture.py", *ATTENTION, *LAYERS]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that has every instruction set of x86-64."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("these instruction sets are of x86-64")
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    path = tmp_path_factory.mktemp("emulated") / "library.so"
    build(path, compiler, EMULATED)
    return path


@pytest.mark.parametrize(
    ("instructions", "files"),
    [
        pytest.param("amx", LINEAR, id="amx"),
        pytest.param("avx512", LINEAR, id="avx512"),
        pytest.param("amx", OTHERS, id="amx, others", marks=pytest.mark.soak),
    ],
)
def test_emulated_kernels_pass_the_tests_of_kernels(emulated: Path, instructions: str, files: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", instructions, *files],
        env=os.environ | {VARIABLE: str(emulated), "QWONNX_TEST_NATIVE_INSTRUCTIONS": instructions},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
