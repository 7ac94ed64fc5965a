"""Root file systems of this machine's Python: what an image FROM scratch needs below the tree of a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_UNUSED = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data",
    "site-packages", "config-*", "_test*", "_tkinter*", "_curses*", "readline*", "nis*", "*.a",
)  # fmt: skip
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


def make_base(root: Path, needed_by: Path) -> None:
    """Python, and the system's libraries that it and the binaries below `needed_by` are linked to. No shell."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = root / "usr" / "local"
    stdlib = Path(sysconfig.get_path("stdlib"))
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.base_prefix) / "bin" / version, prefix / "bin" / version)
    (prefix / "bin" / "python3").symlink_to(version)
    shutil.copytree(stdlib, prefix / "lib" / version, ignore=_UNUSED)
    binaries = [prefix / "bin" / version, *(prefix / "lib" / version / "lib-dynload").glob("*.so")]
    _copy_libraries([*binaries, *needed_by.rglob("*.so*")], root, within=needed_by)
    (root / "tmp").mkdir(mode=0o1777)
    (root / "tmp").chmod(0o1777)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/none\nnonroot:x:65532:65532::/tmp:/none\n")


def add_pip(root: Path) -> None:
    """pip, with this machine's settings and certificates: the base of the first stage."""
    import pip

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = root / "usr" / "local" / "lib" / version / "site-packages"
    shutil.copytree(Path(pip.__file__).parent, site / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    for place in ("/etc/ssl/certs", "/etc/xdg/pip", "/etc/pip.conf"):
        source = Path(place)
        if source.is_dir():
            shutil.copytree(source, root / place.lstrip("/"), symlinks=False, ignore_dangling_symlinks=True)
        elif source.is_file():
            shutil.copy(source, root / place.lstrip("/"))


def _copy_libraries(binaries: Iterable[Path], root: Path, within: Path) -> None:
    found: set[Path] = set()
    for binary in binaries:
        run = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
        found |= {Path(path) for path in _LIBRARY.findall(run.stdout)}
    for path in sorted(found):
        if path.is_relative_to(within) or path.is_relative_to(root):
            continue
        # The loader's own path is fixed; it finds the others in /lib.
        target = root / (str(path).lstrip("/") if path.name.startswith("ld-linux") else f"lib/{path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
