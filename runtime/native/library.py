"""The native library: where it is, whether it can be trusted, and its registration with a session.

A library is checked once a process: it loads, it was built from the sources beside it (where there are any), and its
kernels for this processor agree with its plain ones. Registration is checked too, because the library knows ONNX
Runtime's interface by the numbers of its functions (sources/api.h).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native import expert_memory, token_merging
from qwonnx.runtime.native.build import LIBRARY, SOURCES, sources_digest
from qwonnx.runtime.native.expert_memory import ExpertMemory
from qwonnx.runtime.native.token_merging import TokenMerging

VARIABLE = "QWONNX_NATIVE_LIBRARY"  # names another library than the installed one
INSTRUCTIONS_VARIABLE = "QWONNX_NATIVE_INSTRUCTIONS"  # names another instruction set than the fastest
DOMAIN = "ai.qwonnx"
_BUILD = "python -m qwonnx.runtime.native.build"


class NativeLibrary(Struct, frozen=True):
    """A library that passed its checks."""

    path: Path
    instructions: str  # of its kernels: "amx", "avx512", "avx2", "neon" or "scalar"

    def register(self, options: Any) -> None:
        """Make its operators known to sessions with these onnxruntime.SessionOptions.

        Raises:
            NativeKernelsError: this ONNX Runtime refuses, or has another interface than the library knows.
        """
        functions = _load(self.path)
        before = functions.qwonnx_native_registrations()
        try:
            options.register_custom_ops_library(str(self.path))
        except Exception as error:
            raise NativeKernelsError(f"ONNX Runtime refuses {self.path}: {' '.join(str(error).split())}") from error
        if functions.qwonnx_native_registrations() == before:
            raise NativeKernelsError(
                f"{self.path} does not know this ONNX Runtime's interface: install a version that qwonnx supports"
            )

    def expert_memory(self) -> ExpertMemory:
        """A new account of experts, for one session.

        Raises:
            NativeKernelsError: there is no memory.
        """
        return ExpertMemory(_load(self.path))


def native_library() -> NativeLibrary:
    """The library that QWONNX_NATIVE_LIBRARY names, or the installed one.

    It uses the instruction set that QWONNX_NATIVE_INSTRUCTIONS names, or the fastest of this processor.

    Raises:
        NativeKernelsError: there is none, it has no such instruction set, or it failed its checks. The message says
            what helps.
    """
    path, named = _place()
    return _checked(path, named, os.environ.get(INSTRUCTIONS_VARIABLE, ""))


def native_merging(addresses: Mapping[str, int], counts: Mapping[str, Any]) -> TokenMerging:
    """Merging over a vocabulary in memory; see TokenMerging. It needs no kernels, so those are not tried.

    Raises:
        NativeKernelsError: there is no library, or it was built from other sources.
    """
    path, named = _place()
    return TokenMerging(_trusted(path, named), addresses, counts)


@lru_cache(maxsize=8)
def _checked(path: Path, named: bool, instructions: str) -> NativeLibrary:
    functions = _trusted(path, named)
    # Before anything else asks: a process that never wants AMX does not ask the system for it.
    if functions.qwonnx_native_select(instructions.encode()) != 1:
        raise NativeKernelsError(
            f"{INSTRUCTIONS_VARIABLE} is {instructions!r}, which {path} or this processor does not have: unset it, or"
            " name amx, avx512, avx2, neon or scalar"
        )
    if functions.qwonnx_native_self_test() != 1:
        raise NativeKernelsError(f"the kernels of {path} compute wrong products on this processor: {_BUILD}")
    return NativeLibrary(path, functions.qwonnx_native_instructions().decode())


def _place() -> tuple[Path, bool]:
    """Where the library is, and whether the environment says so."""
    named = os.environ.get(VARIABLE)
    return (Path(named).absolute() if named else SOURCES.parent / LIBRARY), bool(named)


@lru_cache(maxsize=8)
def _trusted(path: Path, named: bool) -> Any:
    """The library's functions, if it was built from the sources beside it."""
    if not path.is_file():
        remedy = f"{VARIABLE} names it" if named else f"build it: {_BUILD}"
        raise NativeKernelsError(f"there are no native kernels at {path}: {remedy}")
    functions = _load(path)
    built_from = functions.qwonnx_native_sources().decode()
    if not named and SOURCES.is_dir() and built_from != sources_digest():
        raise NativeKernelsError(f"{path} was built from other sources than those beside it: {_BUILD}")
    return functions


@lru_cache(maxsize=8)
def _load(path: Path) -> Any:
    try:
        functions = ctypes.CDLL(str(path))
        functions.qwonnx_native_sources.restype = ctypes.c_char_p
        functions.qwonnx_native_instructions.restype = ctypes.c_char_p
        for name in ("qwonnx_native_self_test", "qwonnx_native_registrations", "RegisterCustomOps"):
            getattr(functions, name)
        expert_memory.declare(functions)
        token_merging.declare(functions)
    except (OSError, AttributeError) as error:
        raise NativeKernelsError(f"{path} is not a library of native kernels: {error}") from error
    return functions


def select_instructions(library: NativeLibrary, name: str) -> bool:
    """For tests and benchmarks: use the kernels of another instruction set in this process; "" is the fastest.

    Returns False if the library or the processor does not have it.
    """
    return bool(_load(library.path).qwonnx_native_select(name.encode()) == 1)
