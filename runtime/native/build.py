"""Compile the native library: `python -m qwonnx.runtime.native.build`, or as a part of an installation.

The compiler is $CXX, else the first of c++, g++ and clang++ that runs, else the one in the `ziglang` package. The
result is one shared library beside this file, which links nothing but libc. A build takes about a minute of one
core. Linux and macOS on x86-64 and 64-bit ARM.

Standard library only, and no import of this project: setuptools loads this file alone (infra/native_package.py). Every
server imports it to find the library, so what only a build needs is imported by the functions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent / "sources"
LIBRARY = "libqwonnx_native.dylib" if sys.platform == "darwin" else "libqwonnx_native.so"

# No exceptions, no C++ library: then one compiled file links on any machine, by any linker.
_FLAGS = [
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
]
_SECONDS = 300.0  # for one file, on a machine that has much else to do


class BuildError(Exception):
    """The library was not built; the message says why and what helps."""


class Instructions(NamedTuple):
    """The files of an instruction set, by the beginning of their names. They are empty for other processors."""

    architecture: str  # what a compiler for their processors defines
    flags: tuple[str, ...] = ()
    defined: str = ""  # by these flags; a compiler that is too old for that leaves the files out
    absent: str = ""  # what all files are then told


_AVX512 = ("-mavx2", "-mfma", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")))
INSTRUCTIONS = {
    "avx2": Instructions("__x86_64__", ("-mavx2", "-mfma")),
    "avx512": Instructions("__x86_64__", _AVX512, "__AVX512VNNI__", "-DQWONNX_WITHOUT_AVX512"),
    "amx": Instructions("__x86_64__", (*_AVX512, "-mamx-tile", "-mamx-int8"), "__AMX_INT8__", "-DQWONNX_WITHOUT_AMX"),
    "neon": Instructions("__aarch64__"),
}


class Compiler(NamedTuple):
    """How to call a compiler: `compile_command` takes -c, `link_command` makes a shared library."""

    compile_command: tuple[str, ...]
    link_command: tuple[str, ...]
    link_libraries: tuple[str, ...] = ()
    dot_product: str = "-march=armv8.2-a+dotprod"  # how it is told that an ARM processor has this instruction

    def __str__(self) -> str:
        return " ".join(self.compile_command)


def main(arguments: Sequence[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SOURCES.parent / LIBRARY, help="the library's file")
    parser.add_argument("--target", help="cross-compile by ziglang for this target, such as aarch64-linux-gnu")
    options = parser.parse_args(arguments)
    try:
        compiler = ziglang(options.target) if options.target else find_compiler()
        if compiler is None:
            raise BuildError("there is no C++ compiler: set CXX, install g++ or clang++, or pip install ziglang")
        build(options.out, compiler)
    except BuildError as error:
        sys.exit(f"qwonnx: {error}")
    print(f"{options.out} by {compiler}")


def sources_digest(folder: Path = SOURCES) -> str:
    """What the library remembers of the files that it was built from."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_compiler() -> Compiler | None:
    """The compiler to use on this machine, None if there is none.

    Raises:
        BuildError: $CXX is set and does not run.
    """
    if named := os.environ.get("CXX"):
        command = tuple(shlex.split(named))
        if not _runs(command):
            raise BuildError(f"CXX is {named!r}, which does not run: unset it or name a C++ compiler")
        return _system_compiler(command)
    from shutil import which

    for name in ("c++", "g++", "clang++"):
        if which(name) and _runs((name,)):
            return _system_compiler((name,))
    return ziglang(None)


def ziglang(target: str | None) -> Compiler | None:
    """The compiler of the `ziglang` package, None if it is not installed.

    `zig c++` would build a C++ library before its first link, which takes minutes: its linker is called alone.
    """
    if importlib.util.find_spec("ziglang") is None:
        return None
    zig = (sys.executable, "-m", "ziglang")
    aim = ("-target", target) if target else ()
    # Without these, zig checks arithmetic at run time and may use what this processor has and the next one lacks.
    plain = ("-fno-sanitize=undefined", *(() if target else ("-march=baseline",)))
    return Compiler((*zig, "c++", *aim, *plain), (*zig, "ld.lld", "-shared"), dot_product="-mcpu=generic+dotprod")


def build(out: Path, compiler: Compiler, replaced: Mapping[str, Sequence[str]] | None = None) -> None:
    """Compile every source and link them into `out`, which is replaced whole.

    Args:
        out: the library's file.
        compiler: what compiles and links.
        replaced: by the beginning of files' names, flags instead of those of INSTRUCTIONS.

    Raises:
        BuildError: this platform is not supported, or the compiler refuses; the message has its first lines.
    """
    if sys.platform not in ("linux", "darwin"):
        raise BuildError(f"native kernels are for Linux and macOS, and this is {sys.platform}")
    import shutil
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory(prefix="qwonnx-native-") as name:
        work = Path(name)
        files = sources_with_flags(compiler, replaced)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: _compile(source, files[source], work, compiler), files))
        made = work / out.name
        _run([*compiler.link_command, "-o", str(made), *map(str, objects), *compiler.link_libraries])
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.{os.getpid()}")
        shutil.copyfile(made, beside)
        beside.chmod(0o755)
        beside.replace(out)  # a process that has the old library mapped keeps it


def sources_with_flags(
    compiler: Compiler, replaced: Mapping[str, Sequence[str]] | None = None
) -> dict[Path, tuple[str, ...]]:
    """The sources that this compiler can compile, each with the flags of its instruction set; see build()."""
    replaced = replaced or {}
    machine = _macros(compiler, ())
    flags: dict[str, Sequence[str]] = {"": ()}
    absent: list[str] = []
    left_out: list[str] = []
    for prefix, each in INSTRUCTIONS.items():
        if each.architecture not in machine or prefix in replaced:
            continue
        flags[prefix] = (*each.flags, *([compiler.dot_product] if prefix == "neon" else []))
        if each.defined and each.defined not in _macros(compiler, each.flags):
            left_out.append(prefix)
            absent.append(each.absent)
    flags |= replaced
    return {
        source: (*flags[max((name for name in flags if source.name.startswith(name)), key=len)], *absent)
        for source in sorted(SOURCES.glob("*.cpp"))
        if not source.name.startswith(tuple(left_out))
    }


def _compile(source: Path, flags: Sequence[str], work: Path, compiler: Compiler) -> Path:
    made = work / f"{source.stem}.o"
    digest = f'-DQWONNX_SOURCES="{sources_digest()}"'
    _run([*compiler.compile_command, *_FLAGS, digest, *flags, "-c", str(source), "-o", str(made)])
    return made


def _macros(compiler: Compiler, flags: Sequence[str]) -> str:
    """What the compiler defines with these flags; nothing if it does not know them."""
    try:
        return _run([*compiler.compile_command, *flags, "-dM", "-E", "-x", "c++", os.devnull])
    except BuildError:
        if flags:
            return ""
        raise


def _system_compiler(command: tuple[str, ...]) -> Compiler:
    # The C++ library is left out: the sources use nothing of it.
    libraries = ("-lSystem",) if sys.platform == "darwin" else ("-lc",)
    return Compiler(command, (*command, "-shared", "-nodefaultlibs"), libraries)


def _runs(command: tuple[str, ...]) -> bool:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()][:5]
        raise BuildError(f"{' '.join(command[:4])} ... fails: {' / '.join(lines)[:600]}")
    return done.stdout


if __name__ == "__main__":
    main()
