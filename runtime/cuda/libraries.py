"""Which library a machine lacks, in the words of the system's loader."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from qwonnx.runtime.errors import SettingsError

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_LACKS = re.compile(r"(\S+): cannot open shared object file")


def check_driver() -> None:
    """CUDA's runtime library calls a machine without a driver one whose driver is too old.

    Raises:
        SettingsError: NVIDIA's driver cannot be loaded.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise SettingsError(
            f"NVIDIA's driver cannot be loaded ({error}): install one for CUDA 13; a container sees it if it is started"
            " with GPUs, as by docker run --gpus all"
        ) from error


def missing_library(provider: Path) -> str | None:
    """The library without which ONNX Runtime cannot load a provider: "libcublas.so.13". None if that is not the reason.

    Call it after ONNX Runtime has failed: it loads the provider in the same way.

    Args:
        provider: the provider's own library.
    """
    if not provider.is_file():
        return None
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        lacks = _LACKS.match(str(error))
        return lacks and lacks.group(1)
    return None
