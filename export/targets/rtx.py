"""The record of the RTX target; rtx_lowering.py lowers a graph to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwonnx.export.modeling.cache_spec import KvType, StateLayout
from qwonnx.export.quantization.recipe import NO_RECIPE
from qwonnx.export.targets.target import Activations, LoadedWeights, LoweringFacts, Target
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.artifact.manifest import TensorSpec

if TYPE_CHECKING:  # pulls in torch
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights


class RtxTarget(Target):
    """The plugin TensorRT for RTX, in float16. Experimental: its graphs were compiled, and have not run on a GPU.

    The plugin knows the contributed kernels of the CPU target, each for float16.
    """

    name = "rtx"
    summary = "experimental: GeForce RTX by NVIDIA's plugin"
    activations = (Activations.FLOAT16,)
    kv_types = (KvType.FLOAT16,)
    default_recipe = NO_RECIPE
    minimum_onnxruntime = "1.32"
    providers = ("NvTensorRTRTXExecutionProvider",)
    state_layout = StateLayout(convolution="float16", recurrent="float16")
    is_planned = False
    graph_bytes = 5_000

    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations, facts: LoweringFacts) -> None:
        from qwonnx.export.targets.rtx_lowering import lower_to_rtx

        lower_to_rtx(model, weights, facts)

    def inputs(self, traced: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """As for CUDA: positions of one axis, and lengths as int32."""
        from qwonnx.export.targets.cuda import CudaTarget

        return CudaTarget().inputs(traced)

    def load(self, items: Sequence[WeightItem], activations: Activations, *, native: bool) -> LoadedWeights:
        """Everything lies in the device's memory."""
        return LoadedWeights(packed=sum(item.num_bytes for item in items))
