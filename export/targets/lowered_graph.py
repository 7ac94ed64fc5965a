"""Lowers a traced graph for a target. The result has the table of its weights, which have no bytes yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import tied_weights
from qwonnx.export.lowering.adapter_slots import adapter_inputs, add_adapter_slots
from qwonnx.export.lowering.functions import used_operators
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.quantized_cache import quantize_cache
from qwonnx.export.modeling.cache_spec import stage_states, state_specs
from qwonnx.export.modeling.stage_cut import StageCut
from qwonnx.export.modeling.trace import decoder_inputs, decoder_outputs
from qwonnx.export.quantization.cache_scales import CacheScales
from qwonnx.export.quantization.recipe import Storages
from qwonnx.export.targets.target import LoweringFacts, Target, TargetChoice
from qwonnx.runtime.artifact.file_names import DECODER, graph_file
from qwonnx.runtime.artifact.manifest import AdapterTarget, GraphSpec


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    """A graph, the table of its weights, and its entry in a manifest."""

    model: ir.Model
    weights: GraphWeights
    spec: GraphSpec
    adapter_targets: tuple[AdapterTarget, ...] = ()

    def serialized(self) -> bytes:
        """The content of the file; call `weights.attach` first."""
        content: bytes = ir.to_proto(self.model).SerializeToString(deterministic=True)
        return content


def lower_decoder(
    traced: ir.Model,
    storages: Storages,
    config: ModelConfig,
    choice: TargetChoice,
    cache_scales: Mapping[int, CacheScales] | None = None,
    cut: StageCut | None = None,
    adapter_projections: Collection[str] = (),
) -> LoweredGraph:
    """Lower a traced decoder, in place.

    Args:
        traced: the result of trace_decoder.
        storages: how weights are stored: a recipe, or a plan that also knows the checkpoint.
        config: the model.
        choice: the target, and its types of activations and cache.
        cache_scales: of keys and values in every full-attention layer, by its index; None if they are not quantised.
        cut: the stage that was traced; None: the whole model.
        adapter_projections: last parts of the names of modules that adapters can change while the model runs.

    Raises:
        RecipeError: the recipe cannot be applied.
    """
    floats = choice.activations.floats
    weights = GraphWeights.of_traced(traced.graph, storages, tied_weights(config), floats)
    states = stage_states(state_specs(config, choice.kv, choice.state_layout), cut)
    if cache_scales is not None:
        quantize_cache(traced.graph, choice.kv, states, cache_scales)
    targets = add_adapter_slots(traced.graph, adapter_projections) if adapter_projections else ()
    choice.target.lower(traced, weights, choice.activations, LoweringFacts(config, states))
    _tidy(traced, DECODER)
    inputs, operators = choice.target.inputs(decoder_inputs(config, cut)), _native_operators(traced, choice.target)
    inputs += adapter_inputs(targets)
    outputs = choice.target.outputs(decoder_outputs(config, cut))
    spec = GraphSpec(graph_file(DECODER), inputs, outputs, states, operators)
    return LoweredGraph(traced, weights, spec, targets)


def _native_operators(model: ir.Model, target: Target) -> tuple[str, ...]:
    """The operators of the graph that native kernels can run."""
    return tuple(name for name in used_operators(model.graph) if name in target.native_operators())


def _tidy(model: ir.Model, name: str) -> None:
    """Drop leftovers of the trace: copies, dead shape arithmetic, equal computations, metadata of this machine.

    Nodes get names of their own. The trace counts them, and from where it counts depends on what was traced before.
    """
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),  # and unused initializers
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.TopologicalSortPass(),
    ):
        tidy(model)
    model.producer_name, model.producer_version = "qwonnx", version("qwonnx")
    model.graph.name = name
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
