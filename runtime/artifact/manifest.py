"""The artifact contract: the contents of `manifest.json`, and how to read, write and check it.

The exporter writes an artifact and the runtime opens it; they share only this folder. It uses the standard library only
and does not know tensors: names and shapes are data.

A manifest is untrusted: a stranger may have written it, or a disk may have damaged it. Other code relies on it without
a check, so every string must be one printable line, every number must fit 63 bits, and every state must have a valid
shape and dtype.

Errors: ArtifactError
        |-- ManifestError         manifest.json is missing, malformed, or of a newer schema
        |-- ArtifactFileError     a file is missing, of the wrong size, or outside the folder
        `-- ArtifactHashError     a file's bytes differ from the exported ones
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwonnx.runtime.artifact.schemas import SCHEMA_VERSION, as_newest, as_written
from qwonnx.runtime.artifact.strict_json import StrictJsonError, build, parse_object, quoted, read_object

MANIFEST_NAME = "manifest.json"

# A 60-layer manifest with 240 states takes about 60 kB; more than this is not a manifest, and is not read.
_MAX_MANIFEST_BYTES = 16 << 20


# Valid dtypes of a state (numpy's names), and the axes whose size the runtime decides.
_STATE_DTYPES = frozenset({"float32", "float16", "bfloat16", "float8e4m3fn", "int8", "uint8", "int32", "int64"})
_STATE_AXES = frozenset({"batch", "max_model_len"})
_MAX_STATE_ELEMENTS = 1 << 40  # of one sequence and one token
_MAX_WIDTH = 1 << 24  # of a projection


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
    """A graph input or output. A dimension is a number, or the name of a variable axis ("batch", "sequence", ...)."""

    name: str
    dtype: str  # numpy's name: "float32", "int64", ...
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state tensor of a sequence: a step reads it as `past` and writes it as `present`, of equal shape.

    kind is "key" or "value" (`[batch, num_key_value_heads, max_model_len, head_dim]`, of which a sequence of n tokens
    has filled the first n positions), "conv_state" or "recurrent_state" (of fixed size). A new sequence starts from
    zeros; keys and values need no clearing, since positions past the sequence's length are never read. They may be
    int8, or uint8 with two channels a byte, `[..., head_dim / 2]`.
    """

    layer: int
    kind: str
    past: str
    present: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file: its states, and its other inputs and outputs. Graphs share the artifact's weight files.

    native_operators are those of the domain ai.qwonnx that native kernels can run. A session without these kernels runs
    the functions of the same names in the file, which need nothing but ONNX Runtime.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    native_operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the model, for the runtime and for `qwonnx inspect`, under the names of config.json."""

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
class SourceFile:
    """A file of the checkpoint that holds weights.

    Files of the exporting machine have the sha256 of the bytes that were there. Of a file elsewhere, version and sha256
    are what its store says of it; None: the store does not say.
    """

    name: str
    size: int  # bytes
    sha256: str | None
    version: str | None  # a version id, a generation, an ETag or a time


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Origin of the weights."""

    checkpoint: str  # folder name or hub repo id, never a path of the exporting machine
    revision: str | None
    dtype: str  # of most bytes of the checkpoint: "bfloat16", ...; or its format: "float8_e4m3", "gptq-int4", ...
    files: tuple[SourceFile, ...] = ()  # by name


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """One line of the size table: the weights of one kind in one storage."""

    kind: str  # "experts", "linear_attention", "attention", "shared_expert", "embedding", "lm_head", "router", ...
    storage: str  # "float32", "bfloat16", "int8", "int4"
    num_tensors: int
    num_parameters: int
    num_bytes: int  # codes and scales


@dataclass(frozen=True, slots=True)
class QuantizationFacts:
    """How the weights are stored and what the kernels do with activations."""

    weights: str  # the preset: "fp32", "int8", "int4"
    weight_block_size: int  # along the input features; 0 for fp32
    activations: str  # "float32", "float16", "bfloat16"; or "int8": kernels quantise activations on the fly
    kv: str  # storage of keys and values: "float32", "int8" or "int4"
    recipe: tuple[tuple[str, int], ...]  # (pattern of names, bits), first match wins; bits 32 means float32
    groups: tuple[WeightGroup, ...]


@dataclass(frozen=True, slots=True)
class StageFacts:
    """Which part of a model's layers an artifact has: stage `number` of `count`. A whole model is 1 of 1.

    export is the same digest in all stages of one export, so that others do not run together; empty in a whole model.
    """

    number: int
    count: int
    export: str

    @property
    def is_whole(self) -> bool:
        return self.count == 1


WHOLE_MODEL = StageFacts(1, 1, "")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter that was merged into the weights. rank and scaling are numbers, or "4 to 16" if modules differ."""

    name: str  # of its folder
    sha256: str  # of its tensors' file
    kind: str  # "lora" or "dora"
    rank: str
    scaling: str


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """A projection that adapters can change while the model runs.

    A slot holds two matrices for every target, in the manifest's order: [num_inputs, rank] and [rank, num_outputs].
    """

    module: str  # its name in the text model: "layers.0.self_attn.q_proj"
    num_inputs: int
    num_outputs: int

    @property
    def width(self) -> int:
        """Numbers in a slot for each rank."""
        return self.num_inputs + self.num_outputs


def slot_width(targets: Iterable[AdapterTarget]) -> int:
    """Numbers of a slot for each rank."""
    return sum(target.width for target in targets)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the artifact, by its path relative to the folder, with "/" between parts."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json."""

    schema_version: int
    qwonnx_version: str
    target: str  # the name of an export target: "cpu", "portable", ...
    minimum_onnxruntime: str
    source: SourceFacts
    model: ModelFacts
    quantization: QuantizationFacts
    graphs: dict[str, GraphSpec]  # by name, file_names.DECODER among them
    files: tuple[FileEntry, ...]
    stage: StageFacts = WHOLE_MODEL
    adapters: tuple[AdapterFacts, ...] = ()  # in the order in which they were merged
    adapter_targets: tuple[AdapterTarget, ...] = ()  # none: the model takes no adapters while it runs

    @property
    def num_bytes(self) -> int:
        """Of all files but the manifest itself."""
        return sum(entry.size for entry in self.files)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, the last file of an export: a folder without one does not open.

    Raises:
        ManifestError: read_manifest would refuse it (a recipe's pattern that does not print, ...).
        OSError: it cannot be written.
    """
    text = manifest_text(manifest)
    _checked(as_newest(json.loads(text), manifest.schema_version), MANIFEST_NAME)
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def manifest_text(manifest: Manifest) -> str:
    """The text of manifest.json."""
    return manifest_json(manifest) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Parse and type-check manifest.json alone.

    Raises:
        ManifestError: missing, not JSON, of a newer schema, or with a missing, unknown, mistyped or invalid field.
    """
    path = folder / MANIFEST_NAME
    try:
        if not path.is_file():
            raise ManifestError(
                f"{folder} is not an artifact (no {MANIFEST_NAME}): give the folder `qwonnx export` made"
            )
        document = read_object(path, _MAX_MANIFEST_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ManifestError(f"{quoted(str(path))} cannot be read ({reason}): give an artifact's folder") from error
    except StrictJsonError as error:
        raise ManifestError(f"{path} is malformed ({error}): export the checkpoint again") from error
    return _of_any_schema(document, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """As read_manifest, of the file's content.

    Args:
        content: of manifest.json.
        where: names its origin in messages.

    Raises:
        ManifestError: see read_manifest.
    """
    try:
        return _of_any_schema(parse_object(content), where)
    except StrictJsonError as error:
        raise ManifestError(f"the manifest of {where} is malformed ({error}): export the checkpoint again") from error


def _of_any_schema(document: dict[str, Any], where: str) -> Manifest:
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise ManifestError(f"{where} has no schema_version: export the checkpoint again")
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{where} has manifest schema {quoted(version)} and this qwonnx reads up to {SCHEMA_VERSION}:"
            " upgrade qwonnx"
        )
    return _checked(as_newest(document, version), where)


def _checked(document: dict[str, Any], where: str) -> Manifest:
    """Build a manifest from a document and check it.

    Raises:
        ManifestError: a missing, unknown, mistyped or invalid field.
    """
    try:
        manifest = build(Manifest, document, where=MANIFEST_NAME)
    except StrictJsonError as error:
        raise ManifestError(f"{error}: export the checkpoint again") from error
    for sound, what in _conditions(manifest):
        if not sound:
            raise ManifestError(f"{where} {what}: export the checkpoint again")
    return manifest


def _conditions(manifest: Manifest) -> Iterable[tuple[bool, str]]:
    """Conditions beyond types, each with its error text."""
    facts = manifest.model
    yield (
        re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}", manifest.minimum_onnxruntime) is not None,
        (f"has the minimum_onnxruntime {quoted(manifest.minimum_onnxruntime)}, which is not a version"),
    )
    for name, at_most in (("vocab_size", 1 << 24), ("max_position_embeddings", 1 << 32)):
        value = getattr(facts, name)
        yield 2 <= value <= at_most, f"has the {name} {value}, which is out of range"
    stage = manifest.stage
    is_sound = 1 <= stage.number <= stage.count <= facts.num_hidden_layers if stage.count != 1 else stage == WHOLE_MODEL
    yield is_sound, f"is stage {stage.number} of {stage.count}, which is not valid"
    for names, what in (
        ([entry.path for entry in manifest.files], "lists a file"),
        ([target.module for target in manifest.adapter_targets], "has an adapter target"),
        *(([state.past for state in graph.states], "reads a state") for graph in manifest.graphs.values()),
        *(([state.present for state in graph.states], "writes a state") for graph in manifest.graphs.values()),
    ):
        yield len(set(names)) == len(names), f"{what} twice"
    for target in manifest.adapter_targets:
        sound = all(1 <= size <= _MAX_WIDTH for size in (target.num_inputs, target.num_outputs))
        yield sound, f"has the adapter target {quoted(target.module)}, whose sizes are out of range"
    for state in (state for graph in manifest.graphs.values() for state in graph.states):
        sizes = [size for size in state.shape if isinstance(size, int)]
        axes = {size for size in state.shape if isinstance(size, str)}
        sound = state.dtype in _STATE_DTYPES and state.shape[:1] == ("batch",) and axes <= _STATE_AXES
        described = f"{state.past} of dtype {quoted(state.dtype)} and shape {quoted(state.shape)}"
        yield sound and 0 < math.prod(sizes) <= _MAX_STATE_ELEMENTS, f"has the state {described}, which is not valid"


def manifest_json(manifest: Manifest) -> str:
    """The canonical text of a manifest, in its own schema version."""
    document = as_written(dataclasses.asdict(manifest), manifest.schema_version)
    return json.dumps(document, indent=1, ensure_ascii=False)
