"""Builds the tree of files that a server needs: `python -m infra.shipping.image_root OUT [--variant cuda]`.

1. pip installs the lock's packages, checked by their hashes, without what they ask for beyond it.
2. qwonnx's wheel is unpacked, without the exporter.
3. What no server reads goes: tests, headers, type stubs, ONNX Runtime's Python tools, its second library.
4. Every module is compiled to bytecode that is used without a look at its source: an image's root is read-only.

A Python of the lock's versions runs it: `PYTHONPATH=OUT python -S -m qwonnx.handlers.cli serve ARTIFACT`.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from py_compile import PycInvalidationMode

from infra.shipping.elf import is_elf, read_linkage
from infra.shipping.lock_file import lock_path, read_lock
from infra.shipping.tree_size import largest_table, tree_parts

ROOT = Path(__file__).resolve().parent.parent.parent

# Globs in the tree, and why no server reads what they name.
DROPPED = {
    "bin": "scripts with the builder's interpreter in their first line",
    "**/__pycache__": "compiled again below, in another form",
    "**/*.pyi": "for type checkers",
    "**/*.pxd": "for Cython",
    "**/*.pyx": "for Cython",
    "**/*.a": "for linkers",
    "numpy/**/tests": "tests",
    "numpy/_core/include": "headers",
    "nvidia/**/include": "headers",
    "numpy/f2py": "a compiler of Fortran",
    "numpy/distutils": "a build system",
    "numpy/_pyinstaller": "for a packager",
    "onnxruntime/transformers": "a tool: optimises graphs",
    "onnxruntime/quantization": "a tool: quantises graphs",
    "onnxruntime/tools": "tools",
    "onnxruntime/datasets": "examples",
    "onnxruntime/backend": "an interface of the package onnx",
    "qwonnx/export": "the exporter",
    "qwonnx/runtime/native/sources": "an image has no compiler; its library is compiled",
    "optimum": "a command of optimum",
    "*.dist-info/RECORD": "lists files that are gone",
    "*.dist-info/INSTALLER": "no installer manages the tree",
    "*.dist-info/REQUESTED": "the same",
    "*.dist-info/direct_url.json": "a path of the builder",
}
_SPARE_LIBRARY = "onnxruntime/capi/libonnxruntime.so*"


def install_locked(lock: Path, root: Path) -> None:
    """Install a lock's packages for the running Python.

    Raises:
        SystemExit: pip refused, for example a wheel whose hash is another one.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--target", str(root), "-r", str(lock)]
    if subprocess.call(command):
        raise SystemExit(f"pip cannot install {lock}: its error is above")


def copy_installed(names: Iterable[str], root: Path) -> None:
    """Copy packages of the running environment, as RECORD lists them. No hash is checked: for tests, without a network.

    Raises:
        importlib.metadata.PackageNotFoundError: a package is not installed here.
    """
    for name in names:
        for file in importlib.metadata.distribution(name).files or []:
            source = Path(str(file.locate()))
            if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
                continue  # scripts lie outside
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / file)


def add_wheel(wheel: Path, root: Path) -> None:
    """Unpack a wheel, whatever it is called."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root)


def prune(root: Path) -> None:
    """Remove what no server reads.

    Raises:
        SystemExit: a file asks the loader for ONNX Runtime's library, which therefore cannot go.
    """
    for pattern in DROPPED:
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    drop_spare_library(root)


def drop_spare_library(root: Path) -> None:
    """Remove libonnxruntime.so (35 MB), which the Python module contains and does not load.

    Raises:
        SystemExit: a file is linked to it.
    """
    spare = sorted(root.glob(_SPARE_LIBRARY))
    names = {path.name for path in spare} | {read_linkage(path).soname for path in spare if is_elf(path)}
    for path in sorted(root.rglob("*.so*")):
        if path in spare or not path.is_file() or not is_elf(path):
            continue
        wanted = names & set(read_linkage(path).needed)
        if wanted:
            raise SystemExit(
                f"{path.relative_to(root)} is linked to {', '.join(sorted(map(str, wanted)))}: this release of "
                "ONNX Runtime needs the library, so take _SPARE_LIBRARY out of infra/shipping/image_root.py"
            )
    for path in spare:
        path.unlink()


def compile_tree(root: Path, workers: int = 1) -> None:
    """Bytecode beside every module, with paths as the image has them (from the tree's root).

    Raises:
        SystemExit: a module cannot be compiled.
    """
    mode = PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(
        root, maxlevels=50, quiet=1, force=True, stripdir=str(root), invalidation_mode=mode, workers=workers
    ):
        raise SystemExit("a module cannot be compiled: its error is above")


def build_wheel(out: Path, *flags: str) -> Path:
    """qwonnx's wheel, with native kernels if there is a compiler; flags are pip's.

    Raises:
        SystemExit: it cannot be built.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib")
        for folder in ("export", "runtime", "handlers"):
            shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
        (source / "infra").mkdir()
        for name in ("native_package.py", "source_archive.py"):
            shutil.copy(ROOT / "infra" / name, source / "infra")
        for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.call([*command, "--wheel-dir", str(out), *flags, str(source)]):
            raise SystemExit("qwonnx's wheel cannot be built: the error is above")
    return next(out.glob("qwonnx-*.whl"))


def build_root(root: Path, variant: str, wheel: Path | None = None, *flags: str) -> None:
    """Build the tree in an empty or missing folder; flags are pip's, for qwonnx's wheel.

    Raises:
        SystemExit: the folder has files, or a step failed.
    """
    if root.exists() and any(root.iterdir()):
        raise SystemExit(f"{root} is not empty: remove it, or name another folder")
    root.mkdir(parents=True, exist_ok=True)
    install_locked(lock_path(variant), root)
    with tempfile.TemporaryDirectory() as scratch:
        add_wheel(wheel or build_wheel(Path(scratch), *flags), root)
    prune(root)
    compile_tree(root, workers=os.cpu_count() or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the tree's folder, empty or missing")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu", help="which lock")
    parser.add_argument("--wheel", type=Path, help="qwonnx's wheel; without it, it is built")
    parser.add_argument("--no-build-isolation", action="store_true", help="build it with the setuptools that is here")
    arguments = parser.parse_args()
    flags = ("--no-build-isolation",) if arguments.no_build_isolation else ()
    build_root(arguments.out, arguments.variant, arguments.wheel, *flags)
    print(f"{arguments.out}: {len(read_lock(lock_path(arguments.variant)))} locked packages and qwonnx")
    print(largest_table(tree_parts(arguments.out)))


if __name__ == "__main__":
    main()
