"""Models that were compiled for one kind of GPU, beside the graphs that they were compiled from.

    compiled/NAME/compiled.json    the record: which artifact, which GPU and compiler, which steps, which files
    compiled/NAME/...              the compiled model and its engine; NAME is the hash of what it is for

A compiled model is not in the artifact's manifest: the manifest's hash is the artifact's id, which baked prefixes and
capsules are bound to, and a model does not become another one when it is compiled for one more GPU. So the record names
the artifact's id, and the hashes of its own files.

A compiled model is machine code. It is checked against its record whenever it is used, which finds damage; the folder
must come from somebody who is trusted, like the program itself. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwonnx.runtime.artifact.folder import Artifact, check_file, file_sha256
from qwonnx.runtime.artifact.manifest import ArtifactError, ArtifactFileError, FileEntry
from qwonnx.runtime.artifact.strict_json import StrictJsonError, build, read_object

FOLDER = "compiled"
RECORD = "compiled.json"

_SCHEMA = 1
_MAX_RECORD_BYTES = 1 << 20
_MAX_RECORDS = 64  # that opening an artifact reads
_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What an engine is for: it runs on this kind of GPU, with these versions, and nowhere else."""

    gpu: str  # as the driver names it: "NVIDIA H200"
    compute_capability: str  # "9.0"
    tensorrt: str  # "10.13.0"
    onnxruntime: str  # "1.31.1"

    def differences(self, other: EngineIdentity) -> str:
        """What of this identity is another one there; empty if they are equal: "gpu NVIDIA A10 (here NVIDIA L4)"."""
        names = (field.name for field in dataclasses.fields(self))
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return ", ".join(f"{name} {mine} (here {theirs})" for name, mine, theirs in pairs if mine != theirs)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest steps that a model was compiled for, under the names of the runtime's settings."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    def exceeded(self, by: StepLimits) -> str:
        """Which limits other steps exceed; empty if none: "max_num_seqs 16 (compiled for 8)"."""
        names = (field.name for field in dataclasses.fields(self))
        triples = ((name, getattr(by, name), getattr(self, name)) for name in names)
        return ", ".join(f"{name} {value} (compiled for {limit})" for name, value, limit in triples if value > limit)


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """The content of compiled.json."""

    schema_version: int
    artifact: str  # its id
    graph: str  # by its name in the manifest
    provider: str  # "tensorrt"
    identity: EngineIdentity
    limits: StepLimits
    model: str  # the file that ONNX Runtime opens in place of the graph's
    files: tuple[FileEntry, ...]  # `model` among them; paths are relative to the folder


@dataclass(frozen=True, slots=True)
class CompiledFolder:
    """One folder of compiled/. If model is None, refusal says why it is not used."""

    path: Path
    model: CompiledModel | None
    refusal: str = ""

    @property
    def graph(self) -> Path:
        """The file that ONNX Runtime opens.

        Raises:
            ArtifactError: a file of the folder is missing, or is not as it was written.
        """
        assert self.model is not None, self.refusal
        for entry in self.model.files:
            check_file(self.path, entry, verify=True)
        return self.path / self.model.model


def compiled_folders(artifact: Artifact) -> Iterator[CompiledFolder]:
    """All compiled models of an artifact, sorted by name, without a look at their engines."""
    root = artifact.folder / FOLDER
    try:
        found = sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name)) if root.is_dir() else []
    except OSError as error:
        yield CompiledFolder(root, None, f"it cannot be read ({error.strerror}): copy the artifact again")
        return
    for number, path in enumerate(found):
        try:
            if number >= _MAX_RECORDS:
                raise ArtifactFileError(f"there are more than {_MAX_RECORDS} compiled models: remove some")
            yield CompiledFolder(path, _read(path, artifact))
        except ArtifactError as error:
            yield CompiledFolder(path, None, str(error))


def compiled_path(artifact: Artifact, graph: str, provider: str, identity: EngineIdentity) -> Path:
    """The folder of a compiled model, whether it exists or not; a new one for the same GPU takes its place."""
    text = json.dumps([artifact.id, graph, provider, dataclasses.asdict(identity)])
    return artifact.folder / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]


def write_record(
    folder: Path,
    artifact: Artifact,
    *,
    graph: str,
    provider: str,
    identity: EngineIdentity,
    limits: StepLimits,
    model: str,
) -> CompiledModel:
    """Record a folder's files as a compiled model: the last thing that is written into it.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    entries = (FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, file_sha256(p)) for p in paths)
    record = CompiledModel(_SCHEMA, artifact.id, graph, provider, identity, limits, model, tuple(entries))
    assert any(entry.path == model for entry in record.files), f"{model} is not in {folder}"
    text = json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    return record


def _read(folder: Path, artifact: Artifact) -> CompiledModel:
    """Read a record.

    Raises:
        ArtifactFileError: it cannot be used for this artifact.
    """
    again = "compile the artifact again"
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactFileError("it is not a folder, and links are not followed: remove it")
    try:
        document = read_object(folder / RECORD, _MAX_RECORD_BYTES)
        if document.get("schema_version") != _SCHEMA:
            raise ArtifactFileError(f"its {RECORD} is of another version of qwonnx: {again}")
        record = build(CompiledModel, document, where=RECORD)
    except StrictJsonError as error:
        raise ArtifactFileError(f"its {RECORD} cannot be used ({error}): {again}") from error
    if record.artifact != artifact.id:
        raise ArtifactFileError(f"it was compiled from another artifact: {again}")
    if record.graph not in artifact.manifest.graphs:
        raise ArtifactFileError(f"the artifact has no graph {record.graph}: {again}")
    if all(entry.path != record.model for entry in record.files):
        raise ArtifactFileError(f"its {RECORD} does not list its model: {again}")
    return record
