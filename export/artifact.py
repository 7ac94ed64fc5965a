"""The artifact contract: what `manifest.json` says, how it is read, written and checked.

The exporter writes an artifact, the runtime opens one, and this module is all they share. It uses the standard library
only, so a server can import it without torch or onnx, and it knows nothing of tensors: names and shapes are data.

Errors: ArtifactError
        |-- ManifestError         manifest.json is missing, malformed, or of a newer schema
        |-- ArtifactFileError     a file is missing, of the wrong size, or outside the folder
        `-- ArtifactHashError     a file's bytes are not the ones that were exported
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

# A 60-layer manifest with 240 states takes about 60 kB; more than this is not a manifest, and is not read.
_MAX_MANIFEST_BYTES = 16 << 20
_HASH_CHUNK_BYTES = 1 << 20


class ArtifactError(Exception):
    """An artifact that cannot be used as it is. The message names the cause and the remedy, in one line."""


class ManifestError(ArtifactError):
    """manifest.json is missing, malformed, or of a schema this version does not read."""


class ArtifactFileError(ArtifactError):
    """A file of the artifact is missing, has another size than the manifest says, or lies outside the folder."""


class ArtifactHashError(ArtifactError):
    """A file's sha256 is not the manifest's: the artifact was damaged or changed after its export."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output. A dimension is a number, or the name of what varies ("batch", "sequence", ...)."""

    name: str
    dtype: str  # numpy's name: "float32", "int64", ...
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state tensor a sequence carries from step to step: read as `past`, written as `present`, of equal shape.

    kind is "key" or "value" (`[batch, num_key_value_heads, max_model_len, head_dim]`, of which a sequence of n tokens
    has filled the first n positions), "conv_state" or "recurrent_state" (of fixed size). A new sequence starts from
    zeros; keys and values need no clearing, since positions past the sequence's length are never read.
    """

    layer: int
    kind: str
    past: str
    present: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file, and what it takes and yields beside the states."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the runtime, and a person who reads `qwonnx inspect`, needs to know of the model; config.json's names."""

    architecture: str
    model_type: str
    num_hidden_layers: int
    layer_types: tuple[str, ...]
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    num_experts: int  # 0 in a dense model
    num_experts_per_tok: int  # 0 in a dense model
    num_parameters: int  # of the text model, as exported


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Where the weights came from."""

    checkpoint: str  # folder name or hub repo id, never a path of the exporting machine
    revision: str | None
    dtype: str  # dtype of most bytes of the checkpoint: "bfloat16", ...


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """One line of the size table: the weights of one kind stored one way."""

    kind: str  # "experts", "linear_attention", "attention", "shared_expert", "embedding", "lm_head", "router", ...
    storage: str  # "float32", "int8", "int4"
    num_tensors: int
    num_parameters: int
    num_bytes: int  # codes and scales


@dataclass(frozen=True, slots=True)
class QuantizationFacts:
    """How the weights are stored and what the kernels do with activations."""

    weights: str  # the preset: "fp32", "int8", "int4"
    weight_block_size: int  # along the input features; 0 for fp32
    activations: str  # "float32", or "int8": kernels quantise activations on the fly
    recipe: tuple[tuple[str, int], ...]  # (pattern of names, bits), first match wins; bits 32 means float32
    groups: tuple[WeightGroup, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the artifact, by its path relative to the folder, with "/" between parts."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json, whole."""

    schema_version: int
    qwonnx_version: str
    target: str  # "cpu" or "portable"
    minimum_onnxruntime: str
    source: SourceFacts
    model: ModelFacts
    quantization: QuantizationFacts
    graphs: dict[str, GraphSpec]  # "decoder", later "mtp" and "vision"
    states: tuple[StateSpec, ...]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact: its folder, and a manifest that has been checked against it."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """sha256 of the canonical manifest, which names every file's hash: equal ids mean equal models."""
        return hashlib.sha256(_to_json(self.manifest).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of one of the manifest's files.

        Raises:
            ArtifactFileError: the manifest lists no such file.
        """
        if all(entry.path != name for entry in self.manifest.files):
            raise ArtifactFileError(f"the artifact {self.folder} has no {name}: export the checkpoint again")
        return self.folder / name

    def has_file(self, name: str) -> bool:
        return any(entry.path == name for entry in self.manifest.files)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, the last file of an export: a folder without one does not open."""
    (folder / MANIFEST_NAME).write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: Manifest) -> str:
    """What manifest.json holds."""
    return _to_json(manifest) + "\n"


def open_artifact(folder: str | os.PathLike[str], *, verify: bool = False) -> Artifact:
    """Read and check an artifact.

    Args:
        folder: the artifact's folder.
        verify: also hash every file, which reads all of it; without it, presence and sizes are checked.

    Raises:
        ManifestError: the folder is no artifact, or one of a newer schema, or its manifest is malformed.
        ArtifactFileError: a file is missing, has another size, or its path leaves the folder.
        ArtifactHashError: with verify, a file's bytes differ from what was exported.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    resolved_root = root.resolve()
    for entry in manifest.files:
        path = _contained_path(resolved_root, entry.path)
        if not path.is_file():
            raise ArtifactFileError(f"{entry.path} is missing from the artifact {root}: export the checkpoint again")
        size = path.stat().st_size
        if size != entry.size:
            raise ArtifactFileError(
                f"{entry.path} in {root} has {size} bytes where the manifest says {entry.size}: copy the artifact again"
            )
        if verify and file_sha256(path) != entry.sha256:
            raise ArtifactHashError(f"{entry.path} in {root} was changed after its export: copy the artifact again")
    listed = {entry.path for entry in manifest.files}
    for name, graph in manifest.graphs.items():
        if graph.file not in listed:
            raise ManifestError(
                f"graph {name!r} of {root} names {graph.file}, a file it does not list: export the checkpoint again"
            )
    return Artifact(root, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Parse and type-check manifest.json alone.

    Raises:
        ManifestError: missing, not JSON, of a newer schema, or with a missing, unknown or mistyped field.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ManifestError(f"{folder} is not an artifact (no {MANIFEST_NAME}): give the folder `qwonnx export` made")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB: it is not a manifest")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not valid JSON ({error}): export the checkpoint again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ManifestError(f"{path} has no schema_version: export the checkpoint again")
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{folder} has manifest schema {version} and this qwonnx reads up to {SCHEMA_VERSION}: upgrade qwonnx"
        )
    return _from_json(Manifest, document, where=MANIFEST_NAME)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _contained_path(root: Path, relative: str) -> Path:
    """The file under root that a manifest names; symbolic links are followed before the check.

    Raises:
        ArtifactFileError: the path is absolute, climbs out, or leads out through a link.
    """
    pure = PurePosixPath(relative)
    path = (root / pure).resolve()
    if pure.is_absolute() or ".." in pure.parts or not path.is_relative_to(root):
        raise ArtifactFileError(f"the manifest names {relative!r}, which lies outside {root}: do not use this artifact")
    return path


def _to_json(manifest: Manifest) -> str:
    return json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)


_T = TypeVar("_T")


def _from_json(kind: type[_T], value: Any, where: str) -> _T:
    """Build a value of one of the types used above from parsed JSON, or say where it does not fit.

    Raises:
        ManifestError: a field is missing, unknown, or of another type.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ManifestError(f"{where} should be an object: export the checkpoint again")
        hints = get_type_hints(kind)
        if value.keys() != hints.keys():
            odd = ", ".join(sorted(value.keys() ^ hints.keys()))
            raise ManifestError(f"{where} has missing or unknown fields ({odd}): export the checkpoint again")
        return kind(**{name: _from_json(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            items = [_from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
            return cast(_T, tuple(items))
        if len(arguments) == len(value):
            pairs = zip(arguments, value, strict=True)
            return cast(_T, tuple(_from_json(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs)))
    elif origin is dict and isinstance(value, dict):
        return cast(_T, {key: _from_json(arguments[1], item, f"{where}.{key}") for key, item in value.items()})
    elif origin not in (tuple, dict) and not isinstance(value, bool) and isinstance(value, arguments or (kind,)):
        return cast(_T, value)
    raise ManifestError(f"{where} has an unexpected value ({str(value)[:60]!r}): export the checkpoint again")
