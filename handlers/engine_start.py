"""Open an engine in the order that answers soonest: the weights are read while Python still imports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.engine.startup import StartUp
from qwonnx.runtime.model.weight_files import announce
from qwonnx.runtime.settings import Residency, RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.runtime.engine.engine import Engine


def open_engine(
    artifact: str | os.PathLike[str] | Artifact,
    settings: RuntimeSettings,
    *,
    verify: bool = False,
    startup: StartUp | None = None,
) -> Engine:
    """As Engine.open().

    Args:
        artifact: its folder, or the opened one.
        settings: of the engine.
        verify: check the hashes of the weights first.
        startup: gets the phases.

    Raises:
        ArtifactHashError: a weight file differs from the exported one.
        the errors of Engine.open().
    """
    startup = startup or StartUp()
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    announce(opened, Residency(settings.weights_residency))
    if verify:
        opened = open_artifact(opened.folder, verify=True)

    with startup.phase("imports of the engine"):
        from qwonnx.runtime.engine.engine import Engine  # with numpy and ONNX Runtime

    return Engine.open(opened, settings, startup=startup)
