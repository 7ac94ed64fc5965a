"""Fuzz the native operators: build the library with sanitizers, and call it in two ways at once.

    python -m infra.native_fuzz [--seconds 60] [--seed 1] [--jobs 2] [--emulated]

A driver calls the operators as ONNX Runtime does, with tensors in memory of their exact sizes, valid ones and mutated
ones: shapes, element types, attributes, lengths, values, states in place. Beside it, ONNX Runtime itself loads and runs
mutated artifacts with the library (infra/native_fuzz/files.py). A read or write out of bounds, undefined behaviour, a
crash, or a valid call that is refused ends the run with an error. Needs a compiler with sanitizers.

With --emulated the instruction sets that this processor may lack run too (infra/native_emulation), after some more
minutes of compiling.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.native_emulation.build import EMULATED
from infra.native_fuzz import files
from qwonnx.runtime.native.build import INSTRUCTIONS, SOURCES, BuildError, find_compiler, sources_with_flags

DRIVER = Path(__file__).with_name("driver.cpp")
_FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
    *("-fsanitize=address,undefined", "-fPIC"),
]


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
    parser.add_argument("--emulated", action="store_true", help="AVX-512 and AMX as functions")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qwonnx-fuzz-") as folder:
        try:
            built = build(Path(folder), options.jobs, EMULATED if options.emulated else None)
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


def build(folder: Path, jobs: int, replaced: Mapping[str, Sequence[str]] | None) -> Built:
    """The driver with the library in it, and the library for ONNX Runtime.

    `replaced` has other flags for instruction sets, as qwonnx.runtime.native.build.build() takes them.

    Raises:
        BuildError: there is no compiler with sanitizers.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("there is no C++ compiler: install g++ or clang++")
    command = list(compiler.compile_command)
    sources = sources_with_flags(compiler, replaced)
    told: list[str] = []
    for prefix in _lacking() if replaced is None else ():
        told += [INSTRUCTIONS[prefix].absent]
        sources = {source: flags for source, flags in sources.items() if not source.name.startswith(prefix)}

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        _run([*command, *_FLAGS, *sources.get(source, ()), *told, f"-I{SOURCES}", "-c", str(source), "-o", made])
        return made

    with ThreadPoolExecutor(jobs) as pool:
        driver, *objects = pool.map(compiled, [DRIVER, *sources])
    program, library = folder / "fuzz", folder / "libqwonnx_native.so"
    _run([*command, *_FLAGS, driver, *objects, "-o", str(program)])
    _run([*command, *_FLAGS, "-shared", *objects, "-o", str(library)])
    sanitizer = Path(_run([*command, "-print-file-name=libasan.so"]).strip())
    return Built(program, library, sanitizer)


def _lacking() -> list[str]:
    """The instruction sets that this processor does not have, which would only cost time to compile."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [prefix for prefix, flag in (("avx512", "avx512_vnni"), ("amx", "amx_int8")) if flag not in flags]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:3])} ... fails: {done.stderr[:600]}")
    return done.stdout


if __name__ == "__main__":
    main()
