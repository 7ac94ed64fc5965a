"""Foresees the matrices of floats that the CPU target's fused operators read, without a graph.

cpu_fusion.py finds the operators in a graph, by the same conditions; a test compares the two. The matrices are the
router with the shared expert's gate, and the projections of a linear-attention layer's b and a.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import DOWN, EXPERTS, GATE_UP
from qwonnx.export.targets.target import Activations
from qwonnx.export.weight_files.weight_item import WeightItem

_StoredIn = Mapping[str, WeightItem]


def fused_gates(config: ModelConfig, items: Sequence[WeightItem], activations: Activations) -> Iterator[WeightItem]:
    """The items, joined as a lowering joins them, that are an operator's input `gates`."""
    stored_in = {name: item for item in items for name in item.weight_names}
    for index, layer_type in enumerate(config.layer_types):
        layer = f"layers.{index}"
        if layer_type == "linear_attention":
            attention = f"{layer}.linear_attn.in_proj_"
            gates = _joined(stored_in, f"{attention}b.weight", f"{attention}a.weight")
            codes = [stored_in[f"{attention}{name}.weight"] for name in ("qkv", "z")]
            if gates is not None and _run_in_one_kernel(codes):
                yield gates
        if config.num_experts:
            gates = _joined(stored_in, f"{layer}.mlp.gate.weight", f"{layer}.mlp.shared_expert_gate.weight")
            experts = [stored_in[f"{layer}.{EXPERTS}.{part}"] for part in (GATE_UP, DOWN)]
            shared = [f"{layer}.mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")]
            # The 8-bit kernel of ONNX Runtime quantises activations, so the experts stay in their body.
            in_their_body = activations is Activations.FLOAT32 and any(item.storage.bits == 8 for item in experts)
            is_joined = _joined(stored_in, *shared[:2]) is not None
            codes = [*experts, *(stored_in[name] for name in shared)]
            if gates is not None and is_joined and not in_their_body and _run_in_one_kernel(codes):
                yield gates


def _joined(stored_in: _StoredIn, *names: str) -> WeightItem | None:
    """The item that stores exactly these weights, in this order."""
    item = stored_in[names[0]]
    return item if item.weight_names == names else None


def _run_in_one_kernel(items: Sequence[WeightItem]) -> bool:
    """Whether all are codes, and all or none have zero points."""
    kinds = {(item.storage.is_quantized, item.storage.has_zero_points) for item in items}
    return kinds in ({(True, False)}, {(True, True)})
