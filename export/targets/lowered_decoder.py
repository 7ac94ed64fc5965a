"""A traced decoder, lowered for a target: the graph and the table of its weights, before any weight has bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.quantized_cache import quantize_cache
from qwonnx.export.modeling.cache_spec import state_specs
from qwonnx.export.quantization.cache_scales import CacheScales
from qwonnx.export.quantization.recipe import Storages
from qwonnx.export.targets.cpu import lower_to_cpu
from qwonnx.export.targets.portable import lower_to_portable
from qwonnx.runtime.artifact.file_names import DECODER


@dataclass(frozen=True, slots=True)
class QuantizedCache:
    """Keys and values in "int8" or "int4", and the scales of every full-attention layer, by its index."""

    kv: str
    scales: Mapping[int, CacheScales]


@dataclass(frozen=True, slots=True)
class LoweredDecoder:
    """The graph, and what its initializers are made of."""

    model: ir.Model
    weights: GraphWeights

    def serialized(self) -> bytes:
        """The file, once `weights.attach` has said where every initializer's bytes lie."""
        content: bytes = ir.to_proto(self.model).SerializeToString(deterministic=True)
        return content


def lower_decoder(
    traced: ir.Model,
    storages: Storages,
    config: ModelConfig,
    *,
    target: str,
    int8_activations: bool,
    cache: QuantizedCache | None = None,
) -> LoweredDecoder:
    """Lower a traced decoder, in place.

    Args:
        traced: what trace_decoder gave.
        storages: how weights are stored: a recipe, or a plan that knows the checkpoint too.
        config: the model.
        target: "cpu" or "portable".
        int8_activations: whether the CPU kernels may quantise activations on the fly.
        cache: how keys and values are cached; None: as float32.

    Raises:
        RecipeError: the recipe cannot be applied.
    """
    weights = GraphWeights.of_traced(traced.graph, storages, tie_word_embeddings=config.tie_word_embeddings)
    if cache is not None:
        quantize_cache(traced.graph, cache.kv, state_specs(config, cache.kv), cache.scales)
    if target == "cpu":
        lower_to_cpu(traced, weights, int8_activations=int8_activations)
    else:
        lower_to_portable(traced, weights)
    _tidy(traced)
    return LoweredDecoder(traced, weights)


def _tidy(model: ir.Model) -> None:
    """Drop what tracing left: copies, dead shape arithmetic, equal computations, traces of this machine."""
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),  # and the initializers that nothing uses
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.TopologicalSortPass(),
    ):
        tidy(model)
    model.producer_name, model.producer_version = "qwonnx", version("qwonnx")
    model.graph.name = DECODER
