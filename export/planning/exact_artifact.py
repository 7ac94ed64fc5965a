"""An artifact's size to the byte: traces and lowers the graph, and makes the manifest, as an export does.

This needs torch, and one trace for each recipe: a lowering changes the graph, so two recipes cannot share a trace. No
weights are read.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.source_files import source_files
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.description import describe_artifact
from qwonnx.export.modeling.trace import trace_decoder
from qwonnx.export.planning.artifact_size import ArtifactSize, CopiedFiles
from qwonnx.export.planning.source import PlanSource
from qwonnx.export.planning.stored_model import StoredModel
from qwonnx.export.planning.weight_layout import PlannedFile
from qwonnx.export.quantization.cache_scales import CacheScales
from qwonnx.export.quantization.storage_plan import StoredFormats
from qwonnx.export.targets.lowered_graph import lower_decoder
from qwonnx.export.targets.target import TargetChoice
from qwonnx.export.weight_files.weight_stage import weight_places
from qwonnx.runtime.artifact.file_names import DECODER
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME, FileEntry, SourceFacts, manifest_text

_ANY_SHA256 = "0" * 64


def with_exact_artifact(
    config: ModelConfig,
    model: StoredModel,
    copied: CopiedFiles,
    source: SourceFacts,
    choice: TargetChoice,
) -> StoredModel:
    """The same model, with the real sizes of its graph and its manifest.

    Args:
        config: the model.
        model: stored under a recipe, for this target.
        copied: files that are copied; estimated sizes stay estimates.
        source: the checkpoint's entry in the manifest.
        choice: the target, and its types of activations and cache.
    """
    decoder = lower_decoder(
        trace_decoder(config),
        model.storages,
        config,
        choice,
        _any_scales(config) if choice.kv.is_quantized else None,
    )
    items = decoder.weights.items()
    assert [item.weights for item in items] == [weight.weights for weight in model.weights], "weights differ"
    decoder.weights.attach(weight_places(items, model.layout.shards))
    files = (*model.layout.files, PlannedFile(decoder.spec.file, len(decoder.serialized())), *copied.files)
    manifest = describe_artifact(
        config,
        model.named.recipe,
        source,
        items,
        {DECODER: decoder.spec},
        tuple(FileEntry(file.path, file.num_bytes, _ANY_SHA256) for file in files),
        choice,
    )
    manifest_file = PlannedFile(MANIFEST_NAME, len(manifest_text(manifest).encode()))
    return replace(model, artifact=ArtifactSize((*files, manifest_file), model.layout.num_bytes, copied.is_exact))


def formats_at_hand(source: PlanSource) -> StoredFormats | None:
    """The formats of a checkpoint's weights, from its tensors; None without tensors.

    Raises:
        CheckpointError: the folder's tensors cannot be read.
    """
    if source.folder is None:
        return None
    return WeightSource(Checkpoint.open(source.folder, source.weights_file, source.remote), source.config)


def _any_scales(config: ModelConfig) -> dict[int, CacheScales]:
    """Placeholder scales of a quantised cache: only their number matters here."""
    scales = torch.ones(config.num_key_value_heads, config.head_dim)
    full_attention = (layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention")
    return {layer: CacheScales(scales, scales) for layer in full_attention}


def source_facts(source: PlanSource) -> SourceFacts:
    """The checkpoint's entry in a manifest; its dtype is assumed to be bfloat16 without tensors.

    Raises:
        CheckpointError: the folder's tensors cannot be read.
    """
    tensors = None
    if source.folder is not None:
        tensors = Checkpoint.open(source.folder, source.weights_file, source.remote)
    if source.config.quantization is not None:
        dtype = source.config.quantization.name
    else:
        dtype = "bfloat16" if tensors is None else tensors.dtype
    files = () if tensors is None else source_files(tensors, lambda file: _ANY_SHA256)
    return SourceFacts(checkpoint=source.name, revision=source.commit, dtype=dtype, files=files)
