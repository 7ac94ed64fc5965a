"""Arguments that several commands have: an artifact by folder or name, a checkpoint by all that names one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwonnx.handlers.models.artifact_path import artifact_path, is_path

ARTIFACT = "ARTIFACT"
_HELP = "An artifact's folder, or the name of a pulled model."

ArtifactArgument = Annotated[Path, typer.Argument(parser=artifact_path, metavar=ARTIFACT, help=_HELP)]
OptionalArtifactArgument = Annotated[Path | None, typer.Argument(parser=artifact_path, metavar=ARTIFACT, help=_HELP)]


def checkpoint_of(text: str, *, at_commit: bool = False) -> str:
    """A checkpoint as the exporter finds it. The name of a pulled model stands for what it was pulled from.

    Args:
        text: a path, a hub repository, a URL, or a pulled model's name, which has no owner in it.
        at_commit: of the pulled model, not its repository's newest.

    Raises:
        ModelStoreError: several models have the name, and come from different checkpoints.
    """
    if is_path(text) or "/" in text:
        return text
    from qwonnx.handlers.models.errors import ModelStoreError
    from qwonnx.handlers.models.stored_models import StoredModels

    try:
        record = StoredModels().find(text).record
    except ModelStoreError:
        return text  # the exporter says what a checkpoint is
    return _named(record.source, record.commit if at_commit else record.revision)


def pulled_from(artifact: Path) -> str | None:
    """The checkpoint that an artifact was pulled from, at its commit; None if it was not pulled."""
    from qwonnx.handlers.models.stored_models import StoredModels

    for model in StoredModels().models():
        if model.artifact == artifact:
            return _named(model.record.source, model.record.commit)
    return None


def _named(source: str, revision: str | None) -> str:
    return source if revision is None else f"{source}@{revision}"
