"""The portable target: our operators stay, each with its function body, for any runtime that knows opset 23."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.weight_names import Role
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.targets.target import Activations, LoadedWeights, LoweringFacts, Target
from qwonnx.export.weight_files.weight_item import WeightItem

if TYPE_CHECKING:  # pulls in torch
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights

_FLOAT_BYTES = 4
# Projections become float32, because ONNX Runtime folds constants when it loads, and its arena keeps the memory. These
# are upper bounds; 1.6 to 1.9 and 4.3 to 5.8 times the float32 weights were measured.
_FOLDED_FLOAT, _FOLDED_CODES = 2, 6


class PortableTarget(Target):
    """Standard operators, in float32."""

    name = "portable"
    summary = "standard operators only"
    activations = (Activations.FLOAT32,)
    kv_types = (KvType.FLOAT32, KvType.INT8, KvType.INT4)
    minimum_onnxruntime = "1.31.1"  # the latest with CUDA and TensorRT
    providers = ("CPUExecutionProvider",)
    has_stages = True
    has_adapter_slots = True
    graph_bytes = 24_000  # with the bodies of the operators
    note = "memory of the portable target is an upper bound, for ONNX Runtime's CPU provider"

    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations, facts: LoweringFacts) -> None:
        from qwonnx.export.lowering.functions import add_function_bodies
        from qwonnx.export.lowering.quantized_ops import quantize_weights

        quantize_weights(model.graph, weights)
        add_function_bodies(model)

    def load(self, items: Sequence[WeightItem], activations: Activations, *, native: bool) -> LoadedWeights:
        total = LoadedWeights()
        for item in items:
            if item.role is Role.EXPERTS:  # expanded one at a time, the others at load
                total += LoadedWeights(mapped=item.num_bytes)
            else:
                factor = _FOLDED_CODES if item.storage.is_quantized else _FOLDED_FLOAT
                total += LoadedWeights(packed=factor * _FLOAT_BYTES * item.num_parameters)
        return total
