"""The record of the CPU target; cpu_lowering.py and cpu_attention.py lower a graph to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import DOWN, EXPERTS, GATE_UP, Role
from qwonnx.export.lowering.siblings import feed_forward_names, join_items
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.quantization.recipe import BFLOAT16, Storages
from qwonnx.export.targets.fused_gates import fused_gates
from qwonnx.export.targets.target import Activations, LoadedWeights, LoweringFacts, Target
from qwonnx.export.weight_files.weight_item import WeightItem

if TYPE_CHECKING:  # pulls in torch
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights

_FLOAT_BYTES = 4
# The kernels sum up the codes of a block for 16 output features at a time.
_PACKED_ROWS = 16


class CpuTarget(Target):
    """Operators of ours for native kernels, and ONNX Runtime's contributed kernels for processors.

    Native kernels read weights where their file is mapped. A kernel of ONNX Runtime that packs a weight copies it into
    memory of the process: measured with ONNX Runtime 1.32 on x86-64 with AVX-512 VNNI, kernel by kernel, from
    /proc/self/smaps (docs/plan.md).
    """

    name = "cpu"
    summary = "native kernels, or ONNX Runtime's"
    activations = (Activations.INT8, Activations.FLOAT32)
    kv_types = (KvType.FLOAT32, KvType.INT8, KvType.INT4)
    minimum_onnxruntime = "1.32"
    providers = ("CPUExecutionProvider",)
    has_stages = True
    has_adapter_slots = True
    graph_bytes = 5_000

    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations, facts: LoweringFacts) -> None:
        from qwonnx.export.targets.cpu_lowering import lower_to_cpu

        lower_to_cpu(model, weights, activations)

    def native_operators(self) -> Collection[str]:
        from qwonnx.export.targets.cpu_functions import kernel_operators

        return kernel_operators()

    def join(
        self, config: ModelConfig, items: Sequence[WeightItem], storages: Storages, activations: Activations
    ) -> Sequence[WeightItem]:
        joined = join_items(items, _siblings(config))
        if config.num_experts:
            joined = join_items(joined, _routers(config, joined, activations))
        gates = {item.name for item in fused_gates(config, joined, activations)}
        return [_as_stored(item, storages) if item.name in gates else item for item in joined]

    def load(self, items: Sequence[WeightItem], activations: Activations, *, native: bool) -> LoadedWeights:
        has_int8_experts = any(item.storage.bits == 8 and item.role is Role.EXPERTS for item in items)
        in_their_body = has_int8_experts and activations is Activations.FLOAT32  # experts; see cpu_lowering.py
        total = LoadedWeights()
        for item in items:
            is_read_as_stored = item.storage.is_quantized or item.storage == BFLOAT16
            if native and is_read_as_stored and not (in_their_body and item.role is Role.EXPERTS):
                total += LoadedWeights(mapped=item.num_bytes)
            elif activations is Activations.INT8 and item.storage.is_quantized:
                total += _packed_with_scales(item)
            else:
                total += _for_float_activations(item, has_int8_experts=has_int8_experts)
        return total


def _siblings(config: ModelConfig) -> Iterator[list[str]]:
    """The projections that share an input, in the order in which the modules apply them."""
    for index, layer_type in enumerate(config.layer_types):
        if layer_type == "full_attention":
            yield [f"layers.{index}.self_attn.{name}_proj.weight" for name in "qkv"]
        else:
            yield [f"layers.{index}.linear_attn.in_proj_{name}.weight" for name in ("qkv", "b", "a", "z")]
        yield feed_forward_names(config, f"layers.{index}")


def _routers(config: ModelConfig, items: Sequence[WeightItem], activations: Activations) -> list[list[str]]:
    """Every router that its kernel does not include, with the item that stores the shared expert's gate.

    If no kernel runs a layer's experts, their router stays in the operator's body.
    """
    stored_in = {name: item for item in items for name in item.weight_names}
    pairs = []
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}"
        bits = [stored_in[f"{layer}.{EXPERTS}.{part}"].storage.bits for part in (GATE_UP, DOWN)]
        # The 8-bit kernel always quantises activations.
        if activations is Activations.INT8 or 8 not in bits:
            gate = stored_in[f"{layer}.mlp.shared_expert_gate.weight"]
            pairs.append([f"{layer}.mlp.gate.weight", gate.name])
    return pairs


def _as_stored(item: WeightItem, storages: Storages) -> WeightItem:
    """In bfloat16 if the checkpoint has all its weights in bfloat16."""
    is_bfloat16 = {storages.floats(part.name, part.shape) for part in item.weights} == {BFLOAT16}
    return replace(item, storage=BFLOAT16) if is_bfloat16 else item


def _packed_with_scales(item: WeightItem) -> LoadedWeights:
    """Kernels that quantise activations: codes, scales and a sum for each block are packed together."""
    blocks = item.num_columns // item.storage.block_size
    sums = _FLOAT_BYTES * _rounded_up(item.num_rows, _PACKED_ROWS) * blocks
    scales = item.num_scale_bytes
    return LoadedWeights(packed=item.num_code_bytes + scales + sums, read_once=scales)


def _for_float_activations(item: WeightItem, *, has_int8_experts: bool) -> LoadedWeights:
    """Kernels on float32: matrices of float32 and of 4-bit codes are packed, all others stay mapped."""
    storage, experts = item.storage, item.role is Role.EXPERTS
    if storage.bits == 4 and not (experts and has_int8_experts):
        return LoadedWeights(packed=item.num_code_bytes, mapped=item.num_scale_bytes)
    if not storage.is_quantized and not experts:
        return LoadedWeights(packed=_FLOAT_BYTES * _rounded_up(item.num_rows, _PACKED_ROWS) * item.num_columns)
    scratch = _FLOAT_BYTES * item.num_parameters // item.num_matrices if storage.is_quantized else 0
    return LoadedWeights(mapped=item.num_bytes, scratch=scratch)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
