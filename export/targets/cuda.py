"""The record of the CUDA target; cuda_lowering.py lowers a graph to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.cache_spec import KvType, StateLayout
from qwonnx.export.quantization.recipe import Storages
from qwonnx.export.targets.cuda_memory import load_scratch, step_scratch
from qwonnx.export.targets.cuda_weights import check_weights, joined_weights
from qwonnx.export.targets.target import Activations, LoadedWeights, LoweringFacts, Target
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.artifact.manifest import TensorSpec

if TYPE_CHECKING:  # pulls in torch
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights


# Logits of a row that come to the host; the recommended sampling takes 20, from which penalties may take some.
NUM_TOP_LOGITS = 128


class CudaTarget(Target):
    """ONNX Runtime's contributed kernels for NVIDIA GPUs, in float16 or bfloat16.

    Recurrent states are float32 with values first, as the kernel of the gated delta rule takes them. Decays are
    float32.
    """

    name = "cuda"
    summary = "NVIDIA GPUs, float16 or bfloat16"
    activations = (Activations.FLOAT16, Activations.BFLOAT16)
    kv_types = (KvType.FLOAT16, KvType.BFLOAT16, KvType.INT8, KvType.FLOAT8, KvType.INT4)
    default_recipe = "cuda"
    minimum_onnxruntime = "1.31.1"
    providers = ("CUDAExecutionProvider",)
    state_layout = StateLayout(convolution="float16", channels_last=True, value_major=True)
    on_device = True
    graph_bytes = 5_000
    note = "memory was counted without a card; tokens/s are a bound by the card's bandwidth, and no measurement"

    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations, facts: LoweringFacts) -> None:
        from qwonnx.export.targets.cuda_lowering import lower_to_cuda

        lower_to_cuda(model, weights, facts, NUM_TOP_LOGITS)

    def kv_types_with(self, activations: Activations) -> tuple[KvType, ...]:
        """Floats as the activations are."""
        return (KvType(activations.value), *(kv for kv in self.kv_types if kv.is_quantized))

    def state_layout_with(self, activations: Activations) -> StateLayout:
        """The convolution's state as the activations are."""
        return replace(self.state_layout, convolution=activations.value)

    def inputs(self, traced: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The kernels take positions of one axis, and lengths as int32; the last one lies on the host."""
        own = {
            "position_ids": (TensorSpec("positions", "int64", ("batch", "sequence")),),
            "past_lengths": (
                TensorSpec("last_positions", "int32", ("batch",)),
                TensorSpec("total_sequence_length", "int32", ()),
            ),
        }
        return tuple(spec for each in traced for spec in own.get(each.name, (each,)))

    def outputs(self, traced: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The largest logits too: few requests need the others, which then stay on the device."""
        (logits,) = traced
        *sizes, vocab_size = logits.shape
        assert isinstance(vocab_size, int)
        shape = (*sizes, min(NUM_TOP_LOGITS, vocab_size))
        return (logits, TensorSpec("top_logits", "float32", shape), TensorSpec("top_ids", "int64", shape))

    def join(
        self, config: ModelConfig, items: Sequence[WeightItem], storages: Storages, activations: Activations
    ) -> Sequence[WeightItem]:
        check_weights(config, items)
        return joined_weights(config, items, activations.floats)

    def constant_bytes(self, config: ModelConfig) -> int:
        """Cosines and sines of the rotary angles of all positions, in float16."""
        return 2 * config.max_position_embeddings * config.rotary_dim

    def load(self, items: Sequence[WeightItem], activations: Activations, *, native: bool) -> LoadedWeights:
        """Everything lies in the device's memory."""
        num_bytes = sum(item.num_bytes for item in items)
        return LoadedWeights(packed=num_bytes, scratch=step_scratch(items), loading=load_scratch(items))
