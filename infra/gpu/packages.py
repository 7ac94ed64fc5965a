"""The packages of a bundle: onnxruntime-gpu with the machine code of one architecture, and what the runtime imports."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from infra.gpu.fat_binary import keep_architecture

PYTHON = "3.12"  # of the machine with the GPU
ONNXRUNTIME = "1.31.1"
_IMPORTED = ("numpy", "tokenizers", "jinja2", "markupsafe", "msgspec", "typing_extensions")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_PROVIDER = PurePosixPath("onnxruntime/capi/libonnxruntime_providers_cuda.so")
# Of onnxruntime: what no session loads.
_LEFT_OUT = (
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/datasets",
    "onnxruntime/backend",
    f"onnxruntime/capi/libonnxruntime.so.{ONNXRUNTIME}",
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
)


class PackageError(Exception):
    """A package cannot be had, or lacks what is needed."""


def download(folder: Path, python: str = PYTHON) -> None:
    """Fetch the wheels by pip, for Linux on x86-64 and a version of Python.

    Raises:
        PackageError: pip cannot.
    """
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    pip += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    pip += [option for name in _PLATFORMS for option in ("--platform", name)]
    names = [f"onnxruntime-gpu=={ONNXRUNTIME}", *(f"{name}=={version(name)}" for name in _IMPORTED)]
    if subprocess.call([*pip, *names]):
        raise PackageError(f"pip cannot fetch {', '.join(names)}: its message is above")


def install(wheels: Sequence[Path], site: Path, architecture: int) -> None:
    """Unpack wheels into a folder for PYTHONPATH, with the CUDA provider reduced.

    Args:
        wheels: their files.
        site: the folder.
        architecture: 90 for compute capability 9.0.

    Raises:
        PackageError: the provider is not among them, or has no code for the architecture.
    """
    found = False
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith("/") or name.startswith(_LEFT_OUT) or "/tests/" in name:
                    continue
                content = bytearray(archive.read(name))
                if PurePosixPath(name) == _PROVIDER:
                    found = True
                    if not keep_architecture(content, architecture):
                        raise PackageError(f"{wheel.name} has no machine code for sm_{architecture}: choose another")
                path = site / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    if not found:
        raise PackageError(f"none of the {len(wheels)} wheels has {_PROVIDER.name}: give onnxruntime-gpu {ONNXRUNTIME}")
