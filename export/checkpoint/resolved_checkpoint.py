"""A checkpoint that is found and opened, from what a user names: its texts, its tensors and its entry in a manifest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.foreign_formats import refuse_side_file
from qwonnx.export.checkpoint.location import BY_DEFAULT, Access, locate_checkpoint
from qwonnx.export.checkpoint.remote.remote_folder import RemoteFolder
from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.manifest import SourceFacts


@dataclass(frozen=True, slots=True)
class ResolvedCheckpoint:
    """A checkpoint's folder (or first GGUF file), its entry in a manifest, its config.json and its tensors.

    remote has the tensors if the folder has only the names and the text files.
    """

    folder: Path
    source: SourceFacts
    config: ModelConfig
    tensors: Checkpoint
    remote: RemoteFolder | None = None

    @property
    def whole_folder(self) -> Path:
        """The folder, for other libraries that open it.

        Raises:
            CheckpointError: the tensors are not in it.
        """
        if self.remote is not None:
            raise CheckpointError(
                f"{self.remote.shown} is read in ranges, and transformers needs whole files: copy the checkpoint to a"
                " folder, and give that"
            )
        return self.folder

    def naming(self) -> AbstractContextManager[None]:
        """Name the checkpoint in errors as the user named it."""
        return nullcontext() if self.remote is None else self.remote.naming()


def resolve_checkpoint(
    name_or_path: str, revision: str | None, weights_file: str | None = None, access: Access = BY_DEFAULT
) -> ResolvedCheckpoint:
    """Find a checkpoint, download it from the hub if need be, and open it; arguments as for locate_checkpoint.

    Raises:
        CheckpointError: it does not exist, cannot be downloaded or opened, or its model is not supported.
    """
    found = locate_checkpoint(name_or_path, revision, weights_file, access)
    with nullcontext() if found.remote is None else found.remote.naming():
        quantization = found.config.quantization
        if quantization is None:
            refuse_side_file(found.folder)
        has_values = found.remote is None or not access.headers_only
        tensors = Checkpoint.open(found.folder, weights_file, found.remote, has_values=has_values)
    dtype = tensors.dtype if quantization is None else quantization.name
    source = SourceFacts(checkpoint=found.name, revision=found.commit, dtype=dtype)
    return ResolvedCheckpoint(found.folder, source, found.config, tensors, found.remote)
