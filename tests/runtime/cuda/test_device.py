"""A machine without CUDA's libraries; tests/cuda_standin/ has the rest."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.cuda.libraries import check_driver, missing_library
from qwonnx.runtime.errors import SettingsError

pytestmark = pytest.mark.fast


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's loader finds nothing."""

    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)


@pytest.mark.usefixtures("no_libraries")
def test_without_the_library_one_line_says_what_to_install() -> None:
    with pytest.raises(SettingsError, match=r"libcudart.so.13: cannot open.*install the extra gpu") as raised:
        CudaDevice()
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("no_libraries")
def test_without_a_driver_one_line_says_so() -> None:
    with pytest.raises(SettingsError, match=r"NVIDIA's driver cannot be loaded \(.*cannot open.*CUDA 13") as raised:
        check_driver()
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="it compiles two libraries for Linux"
)
def test_the_library_that_a_provider_lacks_is_named(tmp_path: Path) -> None:
    for name, needs in (("libneeded.so.13", []), ("libprovider.so", ["libneeded.so.13"])):
        (tmp_path / "empty.c").write_text("void nothing(void) {}\n")
        command = ["gcc", "-shared", "-Wl,--no-as-needed", f"-Wl,-soname,{name}", "-o", name, "empty.c", *needs]
        subprocess.run(command, cwd=tmp_path, check=True)
    assert missing_library(tmp_path / "libprovider.so") == "libneeded.so.13"
    assert missing_library(tmp_path / "libneeded.so.13") is None
    assert missing_library(tmp_path / "libother.so") is None
