"""The folder of the artifact, for commands and containers that are not given one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qwonnx.handlers.models.artifact_path import artifact_path
from qwonnx.handlers.settings import PlatformName
from qwonnx.runtime.errors import SettingsError

if TYPE_CHECKING:
    from qwonnx.handlers.functions.platform import Platform

_VARIABLE = "QWONNX_ARTIFACT"


def artifact_folder(given: Path | None, platform: Platform | None, environment: Mapping[str, str]) -> Path:
    """The folder: as given, else QWONNX_ARTIFACT, else the platform's, or the only artifact in a folder there.

    Raises:
        SettingsError: none of them names a folder, or a name is not that of a pulled model. Whether the folder has an
            artifact is not checked.
    """
    if given is not None:
        return given
    if text := environment.get(_VARIABLE, "").strip():
        return artifact_path(text)
    if platform is None or platform.artifact is None:
        raise SettingsError(f"there is no artifact to serve: give its folder, or set {_VARIABLE}")
    folder = platform.artifact
    if not folder.is_dir():
        raise SettingsError(_missing(platform.name, folder, environment))
    from qwonnx.runtime.artifact.manifest import MANIFEST_NAME  # not needed before a server listens

    if (folder / MANIFEST_NAME).is_file():
        return folder
    inside = [entry for entry in folder.iterdir() if (entry / MANIFEST_NAME).is_file()]
    return inside[0] if len(inside) == 1 else folder


def _missing(name: PlatformName, folder: Path, environment: Mapping[str, str]) -> str:
    uri = environment.get("AIP_STORAGE_URI", "").strip()
    if name is PlatformName.VERTEX and uri.startswith("gs://"):
        return (
            f"AIP_STORAGE_URI is {uri}, which is not mounted at {folder}, and qwonnx downloads nothing: put the"
            f" artifact into the image and set {_VARIABLE}, or mount the bucket"
        )
    return f"{name} puts an artifact into {folder}, which does not exist: give its folder, or set {_VARIABLE}"
