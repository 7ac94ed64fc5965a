"""The plugin for RTX where it is not: each case is one line, and nothing runs on the CPU instead."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import read_manifest, write_manifest
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.model import rtx
from qwonnx.runtime.model.artifact_placement import place_artifact
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.artifact.compiled_models import portable

pytestmark = pytest.mark.fast

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact that says that it is for the target rtx."""
    folder = portable(tmp_path / "artifact").folder
    write_manifest(folder, dataclasses.replace(read_manifest(folder), target="rtx"))
    return open_artifact(folder)


@pytest.fixture(autouse=True)
def registered_anew() -> Iterator[None]:
    rtx._plugin_devices.cache_clear()
    yield
    rtx._plugin_devices.cache_clear()


def error(artifact: Artifact, device: str = "auto") -> str:
    with pytest.raises(SettingsError) as raised:
        place_artifact(artifact, RuntimeSettings(device=device), 64)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.skipif(find_spec(PACKAGE) is not None, reason="the plugin is installed")
def test_a_plugin_that_is_not_installed_is_named(artifact: Artifact) -> None:
    for device in ("auto", "rtx", "rtx:1"):
        assert "which is not installed: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13" in error(artifact, device)


def test_a_library_that_cannot_be_loaded_is_said(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a driver: the loader's own message is in the line."""
    package = ModuleType(PACKAGE)
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"no library")
    package.get_library_path = lambda: str(library)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    line = error(artifact, "rtx")
    assert "plugin TensorRT for RTX cannot be loaded" in line
    assert "libplugin.so" in line
    assert "install NVIDIA's driver for CUDA 13" in line


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu", "device is cpu and this artifact is for the target rtx: leave the device out, or export"),
        ("cuda", "or export with --target cuda"),
        ("tensorrt", "TensorRT cannot run this artifact, which is for the target rtx"),
    ],
)
def test_another_device_is_refused(artifact: Artifact, device: str, message: str) -> None:
    assert message in error(artifact, device)


def test_another_artifact_is_refused(tmp_path: Path) -> None:
    line = error(portable(tmp_path / "artifact"), "rtx")
    assert line == (
        "device is rtx and this artifact is for the target portable: leave the device out, or export with --target rtx"
    )
