"""NVIDIA's TensorRT, as far as it is loaded for ONNX Runtime's TensorRT provider: the libraries, and their version.

The provider's library wants TensorRT 10 by name. pip's package tensorrt-cu13-libs has it in a folder where the system's
loader does not look, so the libraries are loaded from there first.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

from qwonnx.runtime.errors import SettingsError

# In the order in which they need each other.
_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
_PIP_PACKAGE = "tensorrt_libs"


def tensorrt_version() -> str:
    """Load TensorRT, and return its version: "10.13.0".

    Raises:
        SettingsError: a library of it is missing, or cannot be loaded.
    """
    folder = _pip_folder()
    libraries = []
    for name in _LIBRARIES:
        path = str(folder / name) if folder and (folder / name).is_file() else name
        try:
            libraries.append(ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL))
        except OSError as error:
            raise SettingsError(
                f"TensorRT cannot be loaded ({error}): install TensorRT 10 for CUDA 13, and add its folder to"
                " LD_LIBRARY_PATH, or give device cuda with an artifact for cuda"
            ) from error
    number = int(libraries[0].getInferLibVersion())
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def _pip_folder() -> Path | None:
    spec = find_spec(_PIP_PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin else None
