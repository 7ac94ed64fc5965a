"""Trace and lower: from a configuration to a graph that lacks nothing but its weights' bytes. No weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.cache_scales import CacheScales
from qwonnx.export.cache_spec import state_specs
from qwonnx.export.config import ModelConfig
from qwonnx.export.lower.cpu import lower_to_cpu
from qwonnx.export.lower.graph_weights import GraphWeights, Storages
from qwonnx.export.lower.portable import lower_to_portable
from qwonnx.export.lower.quantized_cache import quantize_cache
from qwonnx.export.trace import trace_decoder


@dataclass(frozen=True, slots=True)
class QuantizedCache:
    """Keys and values in "int8" or "int4", and the scales of every full-attention layer, by its index."""

    kv: str
    scales: Mapping[int, CacheScales]


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A lowered graph, and the table that says which weights its initializers are made of."""

    model: ir.Model
    weights: GraphWeights

    def save(self, path: Path) -> None:
        """Write the graph, whose weights must be attached.

        Raises:
            OSError: it cannot be written.
        """
        path.write_bytes(ir.to_proto(self.model).SerializeToString(deterministic=True))


def build_decoder(
    config: ModelConfig, storages: Storages, *, target: str, activations: str, cache: QuantizedCache | None = None
) -> BuiltGraph:
    """Trace the text model and lower it for a target.

    Args:
        config: the model.
        storages: how weights are stored: a recipe, or a plan that knows the checkpoint too.
        target: "cpu" or "portable".
        activations: "int8" lets kernels quantise activations on the fly, "float32" does not.
        cache: how keys and values are cached; None: as float32.

    Raises:
        RecipeError: the recipe asks for what the target cannot do.
    """
    model = trace_decoder(config)
    weights = GraphWeights.of_traced(model.graph, storages, tie_word_embeddings=config.tie_word_embeddings)
    if cache is not None:
        quantize_cache(model.graph, cache.kv, state_specs(config, cache.kv), cache.scales)
    if target == "cpu":
        lower_to_cpu(model, weights, int8_activations=activations == "int8")
    else:
        lower_to_portable(model, weights)
    _tidy(model)
    return BuiltGraph(model, weights)


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
    model.graph.name = "decoder"
