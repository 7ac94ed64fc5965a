"""The weights of the CUDA target, without a graph: what its kernels take, and what its lowering joins and fills up.

cuda_lowering.py and cuda_mixers.py do the same in a graph; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import DOWN, EXPERTS, GATE_UP, Role
from qwonnx.export.checkpoint.weight_part import Form
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.siblings import feed_forward_names, join_items, joined_name
from qwonnx.export.quantization.recipe import FLOAT32, FloatType, WeightStorage
from qwonnx.export.weight_files.weight_item import WeightItem

# QMoE wants hidden and inner sizes that this divides.
EXPERT_MULTIPLE = 64
_EXPERT_BLOCKS = (32, 64, 128)  # that QMoE takes
_ROTARY_MULTIPLE = 16  # of GroupQueryAttention
_LARGEST_BLOCK = 128  # that MatMulNBits computes one row with


def check_weights(config: ModelConfig, items: Iterable[WeightItem]) -> None:
    """Refuse what no kernel takes.

    Args:
        config: the model.
        items: one for each weight.

    Raises:
        RecipeError: no kernel takes the model, whatever the recipe, or a weight that is stored so.
    """
    if config.num_experts and config.hidden_size % EXPERT_MULTIPLE:
        raise RecipeError(
            f"hidden_size is {config.hidden_size} and CUDA's experts want a multiple of {EXPERT_MULTIPLE}: this model"
            " cannot be exported for CUDA"
        )
    if config.rotary_dim % _ROTARY_MULTIPLE:
        raise RecipeError(
            f"{config.rotary_dim} values of a head are rotated and CUDA's attention wants a multiple of"
            f" {_ROTARY_MULTIPLE}: this model cannot be exported for CUDA"
        )
    storages = {item.name: item.storage for item in items}
    for item in items:
        if item.role is Role.PROJECTION and item.storage.block_size > _LARGEST_BLOCK:
            raise RecipeError(f"{item.name} has blocks of {item.storage.block_size}: CUDA wants at most 128")
    for index in range(config.num_hidden_layers if config.num_experts else 0):
        layer = f"layers.{index}.{EXPERTS}"
        _check_experts(layer, *(storages[f"{layer}.{part}"] for part in (GATE_UP, DOWN)))


def _check_experts(name: str, gate_up: WeightStorage, down: WeightStorage) -> None:
    bits, blocks = {gate_up.bits, down.bits}, {gate_up.block_size, down.block_size}
    if not (gate_up.is_quantized and down.is_quantized):
        return
    if len(bits) > 1:
        raise RecipeError(f"{name} has matrices of {min(bits)} and {max(bits)} bits: CUDA wants one for both")
    if len(blocks) > 1 or not blocks <= set(_EXPERT_BLOCKS):
        found = " and ".join(map(str, sorted(blocks)))
        raise RecipeError(f"{name} has blocks of {found}: CUDA wants one size of 32, 64 or 128 for both")


def joined_weights(config: ModelConfig, items: Iterable[WeightItem], floats: FloatType) -> list[WeightItem]:
    """A model's weights as the lowering joins and stores them.

    Args:
        config: the model.
        items: one for each weight, in the order in which the modules register them.
        floats: of the graph's arithmetic.
    """
    stored = {item.name: _stored(item, floats) for item in items}
    mixers: dict[int, list[str]] = {}
    for kind, join_mixer in (("full_attention", _join_attention), ("linear_attention", _join_delta_net)):
        for index, layer_type in enumerate(config.layer_types):
            if layer_type == kind:
                mixers[index] = join_mixer(stored, f"layers.{index}")
    layers = range(config.num_hidden_layers)
    siblings = [names for index in layers for names in (mixers[index], feed_forward_names(config, f"layers.{index}"))]
    joined = join_items(list(stored.values()), siblings)
    return join_items(joined, _routers(config, joined)) if config.num_experts else joined


def _stored(item: WeightItem, floats: FloatType) -> WeightItem:
    storage = replace(item.storage, floats=floats) if item.storage.is_quantized else WeightStorage.of_floats(floats)
    if item.name.endswith(".dt_bias"):
        storage = FLOAT32
    multiple = EXPERT_MULTIPLE if item.role is Role.EXPERTS else 1
    return replace(item, weights=tuple(replace(part, multiple=multiple) for part in item.weights), storage=storage)


def _join_attention(stored: dict[str, WeightItem], layer: str) -> list[str]:
    """Queries, keys, values and gates, in one product if all are stored alike; the names of what is multiplied."""
    prefix = f"{layer}.self_attn"
    q_proj = stored.pop(f"{prefix}.q_proj.weight")
    queries, gates = (_select(stored, q_proj, form) for form in (Form.QUERIES, Form.GATES))
    names = [queries, f"{prefix}.k_proj.weight", f"{prefix}.v_proj.weight", gates]
    return [_join(stored, names)] if len({stored[name].storage for name in names}) == 1 else names


def _join_delta_net(stored: dict[str, WeightItem], layer: str) -> list[str]:
    """b and a in one product, and the decay as its logarithm; the names of what is multiplied with one input."""
    in_proj = f"{layer}.linear_attn.in_proj_"
    gates = _join(stored, [f"{in_proj}b.weight", f"{in_proj}a.weight"])
    logarithm = _select(stored, stored.pop(f"{layer}.linear_attn.decay_scale"), Form.LOGARITHM)
    stored[logarithm] = replace(stored[logarithm], storage=FLOAT32)
    return [f"{in_proj}qkv.weight", gates, f"{in_proj}z.weight"]


def _select(stored: dict[str, WeightItem], item: WeightItem, form: Form) -> str:
    name = f"{item.name.removesuffix('.weight')}.{form.name.lower()}.weight"
    stored[name] = WeightItem(name, tuple(replace(part, form=form) for part in item.weights), item.storage)
    return name


def _join(stored: dict[str, WeightItem], names: list[str]) -> str:
    parts, name = [stored.pop(each) for each in names], joined_name(names)
    stored[name] = WeightItem(name, tuple(part for item in parts for part in item.weights), parts[0].storage)
    return name


def _routers(config: ModelConfig, items: Iterable[WeightItem]) -> Iterator[list[str]]:
    """Every router, with the item that stores the shared expert's gate: both are floats of one input."""
    stored_in = {name: item for item in items for name in item.weight_names}
    for index in range(config.num_hidden_layers):
        gate = stored_in[f"layers.{index}.mlp.shared_expert_gate.weight"]
        yield [f"layers.{index}.mlp.gate.weight", gate.name]
