"""Make the virtual environment and install this project into it, editable. Standard library only: it runs first.

torch's wheels for Linux on PyPI contain gigabytes of CUDA, which this project does not need. If torch's index of CPU
wheels can be reached, pip gets it as a second index, and prefers its `+cpu` builds because their version is higher.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
_PROBE_SECONDS = 3.0


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  (an older interpreter must get as far as this line)
        sys.exit(f"qwonnx needs Python 3.11 or later, and this is {platform.python_version()}: make PYTHON=python3.11")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="the environment's folder, made if need be")
    parser.add_argument("--extras", required=True, help="extras of the project, with commas")
    parser.add_argument("--with", dest="others", nargs="*", default=[], help="further packages")
    parser.add_argument("--lock", type=Path, help="first these exact packages, checked by hash: infra/locks/dev.txt")
    arguments, pip_flags = parser.parse_known_args()
    if not (arguments.venv / "pyvenv.cfg").is_file():
        if importlib.util.find_spec("ensurepip") is None:
            sys.exit("this Python cannot make virtual environments: apt install python3-venv, or use another Python")
        print(f"making {arguments.venv}")
        venv.create(arguments.venv, with_pip=True)
    python = arguments.venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    if arguments.lock:
        print(f"installing {arguments.lock} into {arguments.venv}", flush=True)
        locked = ["--no-deps", "--require-hashes", "--only-binary=:all:", "-r", str(arguments.lock)]
        if status := subprocess.call([*install, *locked, *pip_flags]):
            sys.exit(status)
    command = [*install, "-c", str(ROOT / "infra" / "constraints.txt"), *pip_flags, *cpu_index()]
    command += ["-e", f"{ROOT}[{arguments.extras}]", *arguments.others]
    print(f"installing qwonnx[{arguments.extras}] into {arguments.venv}; the first time takes some minutes", flush=True)
    status = subprocess.call(command)
    if status == 0 and os.environ.get("QWONNX_NATIVE_BUILD") != "0" and not _has_kernels():
        _build_kernels(python, pip_flags)
    sys.exit(status)


def _has_kernels() -> bool:
    return any((ROOT / "runtime" / "native").glob("libqwonnx_native.*"))


def _build_kernels(python: Path, pip_flags: list[str]) -> None:
    """Native kernels on a machine without a compiler: by the compiler in the package ziglang, 100 MB.

    qwonnx works without them, so a failure is only told.
    """
    if sys.platform not in ("linux", "darwin"):
        print("without native kernels, which are for Linux and macOS")
        return
    print("building native kernels with the compiler of the package ziglang, because no other C++ compiler works here")
    sys.stdout.flush()
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    constraints = ["-c", str(ROOT / "infra" / "constraints.txt")]
    if subprocess.call([*pip, *constraints, *pip_flags, "ziglang"]) == 0:
        subprocess.call([str(python), "-m", "qwonnx.runtime.native.build"])
    if not _has_kernels():
        print("without native kernels: ONNX Runtime's are used instead (docs/kernels.md says how to add them later)")


def cpu_index() -> list[str]:
    """Options for pip: torch's index of CPU wheels, if it can be reached."""
    if sys.platform != "linux":
        return []  # wheels for other systems are CPU builds anyway
    try:
        with urllib.request.urlopen(f"{CPU_WHEELS}/torch/", timeout=_PROBE_SECONDS):
            return ["--extra-index-url", CPU_WHEELS]
    except (urllib.error.URLError, TimeoutError, OSError):
        return []


if __name__ == "__main__":
    main()
