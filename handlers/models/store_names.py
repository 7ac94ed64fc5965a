"""The names by which a store knows an artifact: requests may give them to a server of it.

Servers import this when they have loaded, so it imports the store only for an artifact that may lie in one.
"""

from __future__ import annotations

from pathlib import Path

from qwonnx.handlers.models.layout import ARTIFACT, RECORD


def store_names(artifact: Path) -> tuple[str, ...]:
    """Of the artifact's folder, the short name before the whole one; none if it was not pulled."""
    folder = artifact.absolute().parent
    if artifact.name != ARTIFACT or not (folder / RECORD).is_file():
        return ()
    from qwonnx.handlers.models.stored_models import model_in

    model = model_in(folder)
    return () if model is None else (model.name.name, str(model.name))
