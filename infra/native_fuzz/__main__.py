"""Fuzz the native operators: build the library with sanitizers, and call it in two ways at once.

    python -m infra.native_fuzz [--seconds 60] [--seed 1] [--jobs 2]

A driver calls the operators as ONNX Runtime does, with tensors in memory of their exact sizes, valid ones and mutated
ones: shapes, element types, attributes, lengths, values, states in place. Beside it, ONNX Runtime itself loads and runs
mutated artifacts with the library (infra/native_fuzz/files.py). A read or write out of bounds, undefined behaviour, a
crash, or a valid call that is refused ends the run with an error. Needs a compiler with sanitizers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.native_fuzz import files
from qwonnx.runtime.native.build import SOURCES, BuildError, find_compiler

DRIVER = Path(__file__).with_name("driver.cpp")
_FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
    *("-fsanitize=address,undefined", "-fPIC"),
]
_INSTRUCTIONS = {"avx2": ["-mavx2", "-mfma"]}


@dataclass(frozen=True, slots=True)
class Built:
    """What the compiler made: the driver, the library, and the sanitizer's own library."""

    driver: Path
    library: Path
    sanitizer: Path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qwonnx-fuzz-") as folder:
        try:
            built = build(Path(folder), options.jobs)
        except BuildError as error:
            sys.exit(f"native_fuzz: {error}")
        with subprocess.Popen([str(built.driver), str(options.seconds), str(options.seed)]) as driver:
            try:
                outcome = files.fuzz(built.library, built.sanitizer, options.seconds, options.seed)
            except BaseException:
                driver.terminate()
                raise
    print(
        f"files: {outcome.num_answered} answered, {outcome.num_refused} refused; "
        f"ONNX Runtime itself failed {outcome.num_onnxruntime} times"
    )
    sys.exit(driver.returncode)


def build(folder: Path, jobs: int) -> Built:
    """The driver with the library in it, and the library for ONNX Runtime.

    Raises:
        BuildError: there is no compiler with sanitizers.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("there is no C++ compiler: install g++ or clang++")
    command = list(compiler.compile_command)
    x86 = "__x86_64__" in _run([*command, "-dM", "-E", "-x", "c++", os.devnull])

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        extra = [
            flag for prefix, flags in _INSTRUCTIONS.items() if x86 and source.name.startswith(prefix) for flag in flags
        ]
        _run([*command, *_FLAGS, *extra, f"-I{SOURCES}", "-c", str(source), "-o", made])
        return made

    with ThreadPoolExecutor(jobs) as pool:
        driver, *objects = pool.map(compiled, [DRIVER, *sorted(SOURCES.glob("*.cpp"))])
    program, library = folder / "fuzz", folder / "libqwonnx_native.so"
    _run([*command, *_FLAGS, driver, *objects, "-o", str(program)])
    _run([*command, *_FLAGS, "-shared", *objects, "-o", str(library)])
    sanitizer = Path(_run([*command, "-print-file-name=libasan.so"]).strip())
    return Built(program, library, sanitizer)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:3])} ... fails: {done.stderr[:600]}")
    return done.stdout


if __name__ == "__main__":
    main()
