"""Commands of setuptools that compile the native kernels into an editable installation, a wheel or an sdist's wheel.

A wheel also has bytecode that is used without a look at its source: a server in a read-only place that unpacks the
wheel (a zip, an image) would compile everything at each start. pip compiles again when it installs.

Without a compiler, a wheel takes the library of the sources if one is there that was built from them (infra/install.py
builds it with the compiler of a package). Else, or with QWONNX_NATIVE_BUILD=0, the installation goes on without
kernels, and says so in one line (pip shows it with --verbose). A wheel with kernels is for one platform, one without
them for all. On Linux the platform is the oldest glibc that has all that the library needs (PEP 600), so that package
indexes take the wheel.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import re
import sys
import sysconfig
from pathlib import Path
from py_compile import PycInvalidationMode
from shutil import copy
from types import ModuleType
from typing import Any

from setuptools.command import editable_wheel as editables
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("runtime") / "native"


class BuildWithKernels(build_py):
    """Modules, then the library: into the sources for an editable installation, else beside the built modules."""

    def run(self) -> None:
        super().run()
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / "qwonnx" / PACKAGE
        if not self.editable_mode:
            (folder / _build_module().LIBRARY).unlink(missing_ok=True)  # of an earlier build
            _compile_modules(Path(self.build_lib))
        reason = _compile(folder)
        if reason:
            print(f"qwonnx is installed without native kernels, which it can do without: {reason}", file=sys.stderr)


_BEFORE = "        # Top-level packages and modules"  # the first line of find_spec in setuptools' finder
_OTHERS_FIRST = """\
        if any(fullname == name or fullname.startswith(name + ".") for name in MAPPING):
            found = PathFinder.find_spec(fullname, path)
            if found is not None and found.origin is not None:
                return found  # a real package, as PYTHONPATH names it; not a mere folder of this name
"""


class EditableFirst(editable_wheel):
    """Makes an editable installation win against a folder named qwonnx where Python looks first: a clone in $HOME.

    setuptools asks its finder last. Until then such a folder has become a namespace package with nothing in it. Asked
    first, the finder gives way to a real package on the path, such as a wheel that PYTHONPATH names.
    """

    def run(self) -> None:
        template = getattr(editables, "_finder_template", None)
        if template is not None:

            def asked_first(*arguments: Any) -> str:
                text = str(template(*arguments))
                if _BEFORE not in text:
                    return text  # of a setuptools that is not known: asked last
                text = text.replace(_BEFORE, _OTHERS_FIRST + _BEFORE, 1)
                return text.replace("sys.meta_path.append(", "sys.meta_path.insert(0, ")

            editables._finder_template = asked_first
        super().run()


class PlatformWheel(bdist_wheel):
    """Names the platform in the wheel's name if the library is in it. Any Python 3 can use it."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        built = Path(self.get_finalized_command("build_py").build_lib) / "qwonnx" / PACKAGE
        for library in built.glob("libqwonnx_native.*"):
            platform = platform_of(library)
        return python, abi, platform


# pip gives wheels of glibc 2.17 to all systems of today; ones for older systems would serve no Python that we take.
_OLDEST_GLIBC = (2, 17)
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")
_FROM_COMPILERS = (b"libstdc++.so", b"libgcc_s.so", b"libc++.so")  # linked statically; else the machine must have them


def platform_of(library: Path) -> str:
    """The platform's tag of a wheel with this library, built here."""
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    content = library.read_bytes()
    versions = [(int(major), int(minor)) for major, minor in _GLIBC.findall(content)]
    if not platform.startswith("linux_") or not versions or any(name in content for name in _FROM_COMPILERS):
        return platform
    major, minor = max(_OLDEST_GLIBC, *versions)
    return f"manylinux_{major}_{minor}_{platform.removeprefix('linux_')}"


def _compile_modules(folder: Path) -> None:
    if not compileall.compile_dir(
        folder, quiet=1, force=True, stripdir=str(folder), invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
    ):
        raise SystemExit("a module cannot be compiled: its error is above")


def _compile(folder: Path) -> str:
    """Why there is no library; an empty text if there is one."""
    if os.environ.get("QWONNX_NATIVE_BUILD") == "0":
        return "QWONNX_NATIVE_BUILD is 0"
    build = _build_module()
    try:
        compiler = build.find_compiler()
        if compiler is None:
            if _is_built(ROOT / PACKAGE / build.LIBRARY, build.sources_digest()):
                if folder != ROOT / PACKAGE:
                    copy(ROOT / PACKAGE / build.LIBRARY, folder / build.LIBRARY)
                return ""
            return f"there is no C++ compiler; with one, {sys.executable} -m qwonnx.runtime.native.build"
        build.build(folder / build.LIBRARY, compiler)
    except build.BuildError as error:
        return str(error)
    return ""


def _is_built(library: Path, digest: str) -> bool:
    """Whether a library is there that was built from the sources of this digest, which it contains as text."""
    return library.is_file() and digest.encode() in library.read_bytes()


def _build_module() -> ModuleType:
    """runtime/native/build.py alone: the project is not installed yet."""
    spec = importlib.util.spec_from_file_location("qwonnx_native_build", ROOT / PACKAGE / "build.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(ROOT / PACKAGE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
