"""The size of an artifact: weights to the byte, and the other files, estimated or looked up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.text_files import read_text_files, vocabulary_bytes
from qwonnx.export.errors import CheckpointError
from qwonnx.export.planning.weight_layout import PlannedFile, WeightLayout
from qwonnx.export.targets.target import Target
from qwonnx.runtime.artifact.file_names import (
    CHAT_TEMPLATE_FILE,
    DECODER,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    graph_file,
)
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME

# Bytes that a layer adds to decoder.onnx, measured on models of 4 and of 40 layers; Target.graph_bytes has the rest.
_EXPERT_LAYER_BYTES, _DENSE_LAYER_BYTES = 11_300, 9_000
# Bytes of manifest.json, measured in the same way; most of them describe the layers' states.
_MANIFEST_BYTES, _MANIFEST_LAYER_BYTES = 3_500, 446
# Bytes of a tokenizer.json, in the hub's indented form, for each row of the embedding: a token and its merge.
_TOKEN_BYTES = 75
# Bytes of a vocabulary.bin: the token's text, its merge, and its slots of a table that is a half to a quarter full.
_VOCABULARY_TOKEN_BYTES = 36
_OPTIONAL_BYTES = {CHAT_TEMPLATE_FILE: 8_000, GENERATION_CONFIG_FILE: 220}


@dataclass(frozen=True, slots=True)
class CopiedFiles:
    """The checkpoint's files that are copied, and vocabulary.bin; `is_exact`: looked up, not estimated."""

    files: tuple[PlannedFile, ...]
    is_exact: bool

    @classmethod
    def of_folder(cls, folder: Path) -> CopiedFiles | None:
        """The files that an export of a folder writes; None if it has no tokenizer that can be read."""
        try:
            files = read_text_files(folder)
        except CheckpointError:  # the export will say what is wrong
            return None
        planned = [PlannedFile(name, len(content)) for name, content in files.contents.items()]
        if (num_bytes := vocabulary_bytes(files)) is not None:
            planned.append(PlannedFile(VOCABULARY_FILE, num_bytes))
        return cls(tuple(planned), is_exact=True)

    @classmethod
    def estimated(cls, config: ModelConfig) -> CopiedFiles:
        """An estimate from the configuration alone."""
        sizes = {
            TOKENIZER_FILE: _TOKEN_BYTES * config.vocab_size,
            VOCABULARY_FILE: _VOCABULARY_TOKEN_BYTES * config.vocab_size,
            **_OPTIONAL_BYTES,
        }
        return cls(tuple(PlannedFile(name, size) for name, size in sizes.items()), is_exact=False)


@dataclass(frozen=True, slots=True)
class ArtifactSize:
    """The files of an artifact. Weights are always exact; `is_exact` is about all other files."""

    files: tuple[PlannedFile, ...]
    weight_bytes: int
    is_exact: bool

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def file_bytes(self, path: str) -> int:
        """Bytes of one file, 0 if it does not exist."""
        return next((file.num_bytes for file in self.files if file.path == path), 0)


def estimate_artifact(config: ModelConfig, layout: WeightLayout, copied: CopiedFiles, target: Target) -> ArtifactSize:
    """An estimate without a trace: graph and manifest by the number of layers."""
    layer_bytes = _EXPERT_LAYER_BYTES if config.num_experts else _DENSE_LAYER_BYTES
    graph_bytes = target.graph_bytes + layer_bytes * config.num_hidden_layers + target.constant_bytes(config)
    graph = PlannedFile(graph_file(DECODER), graph_bytes)
    manifest_bytes = _MANIFEST_BYTES + _MANIFEST_LAYER_BYTES * config.num_hidden_layers
    files = (*layout.files, graph, *copied.files, PlannedFile(MANIFEST_NAME, manifest_bytes))
    return ArtifactSize(files, layout.num_bytes, is_exact=False)
