"""A machine without CUDA's libraries; tests/cuda_standin/ has the rest."""

from __future__ import annotations

import ctypes

import pytest

from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.errors import SettingsError

pytestmark = pytest.mark.fast


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(SettingsError, match=r"libcudart.so.13: cannot open.*install the extra gpu") as raised:
        CudaDevice()
    assert "\n" not in str(raised.value)
