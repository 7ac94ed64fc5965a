"""Run the tests of the CUDA target under the stand-in: `make cuda-standin`, or

    python -m tests.cuda_standin [PYTEST_OPTION ...]

Installs onnxruntime-gpu and NVIDIA's headers into .cuda-standin/, beside the environment that runs this, and compiles
the stand-in there. Without the package, a C compiler, or Linux on x86-64 it says so and ends with status 2.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cuda_standin.build import BuildError, build

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".cuda-standin"
PACKAGE = "onnxruntime-gpu==1.31.1"
HEADERS = ("nvidia-cuda-runtime==13.0.*", "nvidia-cuda-crt==13.0.*")
# Engine and cache run on the stand-in's memory, too: tests/runtime/conftest.py.
TESTS = ("tests/cuda_standin", "tests/runtime/cache", "tests/runtime/engine", "tests/runtime/model/test_runner.py")
SELECTION = "cuda_standin or device"


def main(pytest_options: Sequence[str]) -> int:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return _missing(f"the stand-in needs Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
    packages, headers, libraries = (FOLDER / name for name in ("packages", "headers", "libraries"))
    for target, requirements in ((packages, (PACKAGE,)), (headers, HEADERS)):
        if not _is_installed(target, requirements):
            print(f"installing {' and '.join(requirements)} into {target.relative_to(ROOT)}", flush=True)
            if not _install(target, requirements):
                return _missing(f"pip cannot install {' and '.join(requirements)}: its message is above")
    try:
        build(headers / "nvidia" / "cu13" / "include", libraries, tensorrt=True)
    except BuildError as error:
        return _missing(str(error))
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "pytest", "-k", SELECTION, *TESTS, *pytest_options]
    return subprocess.call(command, cwd=ROOT, env=environment)


def _install(target: Path, requirements: Sequence[str]) -> bool:
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    if subprocess.call([*pip, "--only-binary=:all:", "--upgrade", "--target", str(target), *requirements]):
        return False
    _note(target).write_text("\n".join(requirements))
    return True


def _is_installed(target: Path, requirements: Sequence[str]) -> bool:
    note = _note(target)
    return note.is_file() and note.read_text() == "\n".join(requirements)


def _note(target: Path) -> Path:
    return target / "installed.txt"


def _missing(reason: str) -> int:
    print(f"the CUDA target was not tested: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
