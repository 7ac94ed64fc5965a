"""Compile the native library with emulated AVX-512 and AMX: `python -m infra.native_emulation.build --out FILE`.

The kernels' own sources are compiled for AVX2 with a header that has the wider instructions as functions
(immintrin.h). The library then has the instruction sets avx512 and amx on every x86-64 processor. QWONNX_NATIVE_LIBRARY
makes a process use it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qwonnx.runtime.native.build import INSTRUCTIONS, BuildError, build, find_compiler

FOLDER = Path(__file__).resolve().parent
# By the beginning of files' names. -O1 compiles in half the time, and emulated instructions are calls anyhow.
_NARROW = INSTRUCTIONS["avx2"].flags
_WIDE = ("-O1", *_NARROW, "-DQWONNX_EMULATED", f"-I{FOLDER}", "-Wno-psabi")
EMULATED = {
    "": ("-O1",),
    "avx2": ("-O1", *_NARROW),
    "avx512": _WIDE,
    "amx": _WIDE,
    "processor": ("-O1", "-DQWONNX_EMULATED"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the library's file")
    options = parser.parse_args(arguments)
    try:
        compiler = find_compiler()
        if compiler is None:
            raise BuildError("there is no C++ compiler: set CXX, install g++ or clang++, or pip install ziglang")
        build(options.out, compiler, EMULATED)
    except BuildError as error:
        sys.exit(f"native_emulation: {error}")


if __name__ == "__main__":
    main()
