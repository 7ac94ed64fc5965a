"""`make cuda-standin` says what is missing, with status 2, where it cannot run."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_standin import __main__ as standin

pytestmark = [
    pytest.mark.fast,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="the stand-in is for Linux on x86-64"
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone without the stand-in, and without a package index."""
    monkeypatch.setattr(standin, "ROOT", tmp_path)
    monkeypatch.setattr(standin, "FOLDER", tmp_path / ".cuda-standin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / ".cuda-standin"


def test_a_package_that_pip_cannot_have_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert standin.main([]) == 2
    told = capfd.readouterr().err
    assert "the CUDA target was not tested: pip cannot install onnxruntime-gpu==1.31.1: its message is above" in told


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("", "no C compiler: install gcc, or name one in CC"), ("/no/such/gcc", "/no/such/gcc cannot be run")],
)
def test_a_missing_compiler_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], compiler: str, message: str
) -> None:
    for name, requirements in (("packages", (standin.PACKAGE,)), ("headers", standin.HEADERS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "installed.txt").write_text("\n".join(requirements), encoding="utf-8")
    include = folder / "headers" / "nvidia" / "cu13" / "include"
    include.mkdir(parents=True)
    (include / "cuda_runtime_api.h").touch()
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", "")
    assert standin.main([]) == 2
    assert f"the CUDA target was not tested: {message}" in capfd.readouterr().err


@pytest.mark.soak
def test_everything_passes_under_the_stand_in() -> None:
    """Two minutes on two cores, and the download of 250 MB the first time."""
    command = [sys.executable, "-m", "tests.cuda_standin", "-q", "--numprocesses", "auto", "--dist", "loadfile"]
    done = subprocess.run(command, cwd=standin.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
