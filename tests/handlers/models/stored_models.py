"""Models that are put into a store without an export."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwonnx.handlers.models.layout import ARTIFACT
from qwonnx.handlers.models.names import ModelName
from qwonnx.handlers.models.stored_models import PulledModel, Record, StoredModels


def put(
    store: StoredModels,
    artifact: Path | None,
    name: str,
    recipe: str = "balanced",
    source: str = "",
    revision: str = "",
) -> PulledModel:
    """Copy an artifact into the store; without one, the model is unfinished."""
    whole = ModelName(name, None, recipe)
    source = source or f"someone/{name}"
    with store.exclusive(whole) as folder:
        record = Record(name, source, whole.revision, "c0ffee", recipe, "cpu", "asked for", 1_800_000_000.0)
        store.write_record(whole, record)
        if artifact is not None:
            shutil.copytree(artifact, folder / ARTIFACT)
    found = store.model(whole)
    assert found is not None
    return found
