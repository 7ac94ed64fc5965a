"""Wheels in a folder for PYTHONPATH, without what no session loads, and with one architecture's machine code."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from infra.gpu.packages import PackageError, install
from tests.infra.gpu.test_fat_binary import CODE, entry, fat_binary

pytestmark = pytest.mark.fast

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "onnxruntime_gpu.whl"
    contents = {
        PROVIDER: fat_binary(entry(CODE, 80, b"eighty"), entry(CODE, 90, b"ninety")),
        "onnxruntime/__init__.py": b"import numpy",
        "onnxruntime/transformers/big.py": b"tools",
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": b"tensorrt",
        "numpy/tests/test_all.py": b"tests",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_what_a_session_loads_is_installed_with_the_wanted_code(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install([wheel], site, 90)
    assert {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()} == {
        PROVIDER,
        "onnxruntime/__init__.py",
    }
    code = (site / PROVIDER).read_bytes()
    assert b"ninety" in code
    assert b"eighty" not in code


def test_an_architecture_or_a_provider_that_is_not_there_is_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"onnxruntime_gpu\.whl has no machine code for sm_100: choose another"):
        install([wheel], tmp_path / "site", 100)
    with pytest.raises(PackageError, match=r"none of the 0 wheels has libonnxruntime_providers_cuda\.so"):
        install([], tmp_path / "site", 90)
