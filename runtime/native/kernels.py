"""The kernels that can be asked for. A module of its own, because settings need no more of this package."""

from __future__ import annotations

from enum import StrEnum


class Kernels(StrEnum):
    """The kernels that are asked for."""

    AUTO = "auto"  # native ones if they can be had
    NATIVE = "native"  # or an error
    ONNXRUNTIME = "onnxruntime"
