"""A stage of a model in stages (docs/stages.md) as a Ray actor: Ray places it, and starts it again when it dies."""

from __future__ import annotations

import os
import threading
from typing import Any

from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.model.stages.address import StageAddress
from qwonnx.runtime.model.stages.stage_server import StageServer
from qwonnx.runtime.settings import RuntimeSettings

try:
    import ray
except ImportError as error:
    raise SettingsError(f"Ray is not installed: {how_to_install('ray')}") from error


class Stage:
    """One stage, which listens where it is told.

    Raises:
        SettingsError, ArtifactError, SessionError: see StageServer.
    """

    def __init__(self, artifact: str | os.PathLike[str], listen: str) -> None:
        settings, address = RuntimeSettings.from_environment(), StageAddress.parse(listen)
        address.check_key(settings.stage_key)
        listener = address.listen()
        self._server = StageServer(open_artifact(artifact), settings)
        threading.Thread(target=self._server.serve, args=(listener,), name="qwonnx-stage", daemon=True).start()

    def name(self) -> str:
        """Such as "stage 2 of 3"; a call waits until the stage is loaded."""
        return self._server.name

    def process_id(self) -> int:
        """Of the actor."""
        return os.getpid()


def start_stage(artifact: str | os.PathLike[str], listen: str, **options: Any) -> Any:
    """Start a stage as an actor, which Ray starts again whenever it dies.

    Args:
        artifact: the stage's folder, on the actor's machine.
        listen: its address there: see docs/stages.md. It must not change when the actor moves, so place it, by a node's
            resource in the options.
        options: of the actor: num_cpus, resources, runtime_env with QWONNX_STAGE_KEY, lifetime, name.

    Returns:
        the actor's handle, which ends the actor when it is dropped, unless its lifetime is "detached".
    """
    actor = ray.remote(Stage)
    return actor.options(**{"num_cpus": 1, "max_restarts": -1, "max_task_retries": -1, **options}).remote(
        os.fspath(artifact), listen
    )
