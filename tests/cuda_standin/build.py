"""Compile the stand-in: shared libraries of the names that onnxruntime-gpu's CUDA provider loads.

    python -m tests.cuda_standin.build INCLUDE FOLDER

INCLUDE has NVIDIA's cuda_runtime_api.h, from the packages nvidia-cuda-runtime and nvidia-cuda-crt. A process that has
FOLDER in LD_LIBRARY_PATH sees one CUDA device. Its memory is memory of the host, copies are done, and kernels are only
counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"


@dataclass(frozen=True, slots=True)
class _Library:
    """A shared library, its sources, and whether its symbols have its name as their version, as NVIDIA's have."""

    name: str
    sources: tuple[str, ...]
    versioned: bool = False
    needs_runtime: bool = False


_RUNTIME = _Library(
    "libcudart.so.13", ("trace.c", "memory.c", "device.c", "copies.c", "streams.c", "kernels.c"), versioned=True
)
_LIBRARIES = (
    _RUNTIME,
    _Library("libcublas.so.13", ("cublas.c",), versioned=True, needs_runtime=True),
    _Library("libcublasLt.so.13", ("cublaslt.c",), versioned=True, needs_runtime=True),
    _Library("libcuda.so.1", ("driver.c",)),
    _Library("libcurand.so.10", ("curand.c",)),
)
# With these the TensorRT provider's library can be loaded too, so that its kernels can be listed.
_TENSORRT_LIBRARIES = (
    _Library("libnvinfer.so.10", ("tensorrt.c",)),
    _Library("libnvonnxparser.so.10", ("tensorrt_parser.c",)),
    _Library("libcudnn.so.9", ("cudnn.c",), versioned=True),
)


class BuildError(Exception):
    """There is no compiler, or it failed."""


def build(include: Path, folder: Path, *, tensorrt: bool = False) -> None:
    """Compile all libraries into the folder, which is created.

    Args:
        include: the folder of cuda_runtime_api.h.
        folder: for the libraries.
        tensorrt: also those of TensorRT and cuDNN, which compute nothing either.

    Raises:
        BuildError: no compiler, no header, or a source that does not compile.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise BuildError("no C compiler: install gcc, or name one in CC")
    if not (include / "cuda_runtime_api.h").is_file():
        raise BuildError(f"{include} has no cuda_runtime_api.h: install nvidia-cuda-runtime and nvidia-cuda-crt")
    folder.mkdir(parents=True, exist_ok=True)
    for library in (*_LIBRARIES, *(_TENSORRT_LIBRARIES if tensorrt else ())):
        command = [compiler, "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{include}"]
        command += [str(SOURCES / source) for source in library.sources]
        command += ["-o", str(folder / library.name), f"-Wl,-soname,{library.name}"]
        if library.needs_runtime:
            command += [str(folder / _RUNTIME.name)]
        if library.versioned:
            versions = folder / f"{library.name}.map"
            versions.write_text(f"{library.name} {{ global: *; }};\n")
            command += [f"-Wl,--version-script={versions}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{compiler} cannot be run ({error.strerror}): install gcc, or name it in CC") from error
        if done.returncode:
            raise BuildError(f"{compiler} cannot build {library.name}: {done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    include, folder = sys.argv[1:] if arguments is None else arguments
    try:
        build(Path(include), Path(folder))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
