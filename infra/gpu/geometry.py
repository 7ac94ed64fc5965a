"""Write the CUDA artifact of a published size without its weights, which seeded_weights.fill() makes where it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
import torch

from infra.gpu.seeded_weights import EXPERTS, ROWS, SeededTensor, SeededWeights
from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.checkpoint.weight_names import Role
from qwonnx.export.description import describe_artifact
from qwonnx.export.modeling.trace import trace_decoder
from qwonnx.export.planning.weight_layout import lay_out_weights
from qwonnx.export.quantization.cache_scales import CacheScales
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.lowered_graph import LoweredGraph, lower_decoder
from qwonnx.export.targets.register import choose_target
from qwonnx.export.weight_files.weight_item import CODES, SCALES
from qwonnx.export.weight_files.weight_stage import weight_places
from qwonnx.runtime.artifact.file_names import DECODER
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import FileEntry, SourceFacts, write_manifest
from tests.checkpoints.published import PUBLISHED

_ANY_SHA256 = "0" * 64  # of weight files, which nothing compares on loading
_SHARES = {Role.EXPERTS: EXPERTS, Role.EMBEDDING: ROWS}
_CACHE_SCALE = 0.05
_CODE_DEVIATION = {4: 4.6, 8: 73.9}  # of equally likely codes, by bits


def write_geometry(
    out: Path, name: str = "35B-A3B", *, kv: str = "float16", text: Mapping[str, object] | None = None
) -> None:
    """Write a model's graph, manifest and weights.json into a new folder.

    Args:
        out: the folder.
        name: of the published size.
        kv: how keys and values are stored.
        text: fields of the text model's config.json to set: fewer layers, experts or words.
    """
    document = PUBLISHED[name].config()
    document["text_config"].update(text or {})
    config = parse_config(document)
    recipe, choice = Recipe.preset("int4", 32), choose_target("cuda", kv=kv)
    scales = _cache_scales(config) if choice.kv.is_quantized else None
    lowered = lower_decoder(trace_decoder(config), recipe, config, choice, scales)
    items = lowered.weights.items()
    layout = lay_out_weights(items)
    lowered.weights.attach(weight_places(items, layout.shards))
    out.mkdir(parents=True)
    graph = out / lowered.spec.file
    graph.write_bytes(lowered.serialized())
    files = [FileEntry(file.path, file.num_bytes, _ANY_SHA256) for file in layout.files]
    files.append(FileEntry(graph.name, graph.stat().st_size, file_sha256(graph)))
    source = SourceFacts(checkpoint=f"Qwen3.5-{name}, random", revision=None, dtype="bfloat16")
    write_manifest(out, describe_artifact(config, recipe, source, items, {DECODER: lowered.spec}, tuple(files), choice))
    SeededWeights(list(_tensors(lowered)), config.num_experts, config.num_experts_per_tok).save(out)


def _tensors(lowered: LoweredGraph) -> Iterator[SeededTensor]:
    """The tensors of the weight files. A product with such a matrix is about as large as what it multiplies."""
    items = {item.name: item for item in lowered.weights.items()}
    places: set[tuple[str, int]] = set()
    for name, value in lowered.model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or (tensor.location, tensor.offset) in places:
            continue  # a constant of the graph, or the same bytes under another shape
        assert tensor.offset is not None
        assert tensor.length is not None
        places.add((str(tensor.location), tensor.offset))
        item = items[name.removesuffix(CODES).removesuffix(SCALES)]
        largest = math.sqrt(3 / item.num_columns)
        low, high = (1.0, 1.0) if item.role is Role.VECTOR else (-largest, largest)
        if name.endswith(SCALES):
            largest = 1 / (math.sqrt(item.num_columns) * _CODE_DEVIATION[item.storage.bits])
            low, high = 0.5 * largest, 1.5 * largest
        dtype, share = tensor.dtype.numpy().name, _SHARES.get(item.role, "all")
        yield SeededTensor(name, str(tensor.location), tensor.offset, tensor.length, dtype, low, high, share)


def _cache_scales(config: ModelConfig) -> dict[int, CacheScales]:
    scales = torch.full((config.num_key_value_heads, config.head_dim), _CACHE_SCALE)
    full_attention = (layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention")
    return {layer: CacheScales(scales, scales) for layer in full_attention}
