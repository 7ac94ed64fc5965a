"""Adapters as peft saves them, with random values, and the weights that peft itself merges them to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from qwonnx.export.evaluation.reference_adapters import merge_adapters
from qwonnx.export.evaluation.reference_model import quiet_transformers
from tests.checkpoints import write_tiny

# Sizes by which the shapes of the experts' factors tell what they are: twice 48 is not 128.
TEXT = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS_TEXT = {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2}
LINEAR = [
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
    *("gate_proj", "up_proj", "down_proj", "shared_expert_gate"),
]
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
WEIGHTS = "adapter_model.safetensors"

State = dict[str, Tensor]


def write_base(folder: Path, **options: Any) -> Path:
    """A checkpoint of the text model alone, in float32, that adapters are trained on."""
    arguments = {"architecture": "Qwen3_5MoeForCausalLM", "dtype": "F32", "vision": False, **options}
    experts = EXPERTS_TEXT if "Moe" in arguments["architecture"] else {}
    text = {**TEXT, **experts, **arguments.pop("text_overrides", {})}
    return write_tiny(folder, text_overrides=text, **arguments)


def load(base: Path) -> nn.Module:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter's folder, and the weights that the trained model has after merge_and_unload."""

    folder: Path
    merged: State


def train(
    model: nn.Module, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any
) -> Trained:
    """Save an adapter of random values as a training would, without changing the model.

    Args:
        model: of the base.
        folder: where the adapter goes.
        seed: of the values.
        dtype: of the saved tensors.
        fields: of peft's LoraConfig.
    """
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(init_lora_weights=False, **fields))
        for name, parameter in wrapped.named_parameters():
            if "lora_magnitude_vector" in name or "modules_to_save" in name:
                parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
            elif "lora_" in name:
                parameter.data *= 0.5
            else:
                continue
            parameter.data = parameter.data.to(dtype).float()
        wrapped.save_pretrained(str(folder))
        if dtype is not torch.float32:
            # The base's own weights, which peft saves with factors of embeddings, are not rounded.
            edit_tensors(
                folder, lambda state: {n: x if ".base_layer.w" in n else x.to(dtype) for n, x in state.items()}
            )
        return Trained(folder, dict(wrapped.merge_and_unload().state_dict()))


def edit_tensors(folder: Path, edit: Callable[[State], State]) -> Path:
    """Change an adapter's tensors."""
    save_file({name: value.contiguous() for name, value in edit(load_file(folder / WEIGHTS)).items()}, folder / WEIGHTS)
    return folder


def merged_by_peft(model: nn.Module, *folders: Path) -> State:
    """Every weight after merge_and_unload of peft, by its name in the model."""
    with quiet_transformers():
        return dict(merge_adapters(copy.deepcopy(model), folders).state_dict())


def merged(base: Path, *folders: Path) -> State:
    """Every weight as an export reads it, before transforms, by its name in the checkpoint."""
    adapted = resolve_adapted(str(base), None, None, folders)
    weights = adapted.weights
    assert weights is not None
    state = {}
    for name in weights.names:
        shape = weights.shape(name)
        opened = weights.open(name, shape)
        state[name] = opened.read(0, opened.num_rows).float().view(shape)
    return state


def assert_same(found: State, expected: State, *, is_dora: bool = False) -> None:
    """Equal to 1e-6 of the largest value of each weight, or absolutely where that is less than one.

    is_dora: peft sums the squares of an embedding's columns in float32, which alone is wrong by up to 1e-6 (we sum in
    float64), so the embedding gets 4e-6.
    """
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        tolerance = 4e-6 if is_dora and "embed_tokens" in name else 1e-6
        atol = tolerance * max(1.0, float(values.abs().max()))
        torch.testing.assert_close(found[name], values, rtol=0, atol=atol, msg=f"{name} differs")
