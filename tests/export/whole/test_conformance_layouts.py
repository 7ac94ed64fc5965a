"""Conformance 3 to 5: mistakes of layout that other exporters made, each shown to be visible on the tiny checkpoint.

`test_conformance.py` finds the export equal to transformers within 1e-4. These tests make one mistake at a time in
transformers' own weights and find its logits change by far more: had the export made it, that comparison would fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.runtime.artifact.folder import open_artifact

Parameters = dict[str, torch.Tensor]
PROMPT = np.random.default_rng(3).integers(0, 256, 40)


def _every(parameters: Parameters, ending: str) -> list[torch.Tensor]:
    found = [tensor for name, tensor in parameters.items() if name.endswith(ending)]
    assert found, ending
    return found


def _subtract_one(parameters: Parameters, ending: str) -> None:
    for weight in _every(parameters, ending):
        weight -= 1.0


def _add_one_to_the_gated_norm(parameters: Parameters) -> None:
    for weight in _every(parameters, "linear_attn.norm.weight"):
        weight += 1.0


def _all_queries_before_all_gates(parameters: Parameters) -> None:
    for weight in _every(parameters, "self_attn.q_proj.weight"):
        heads = weight.reshape(4, 2, 32, -1).transpose(0, 1)  # [query | gate, heads, head_dim, hidden]
        weight.copy_(heads.reshape(weight.shape).clone())


def _up_before_gate(parameters: Parameters) -> None:
    for weight in _every(parameters, "mlp.experts.gate_up_proj"):
        gate, up = weight.clone().chunk(2, dim=1)
        weight.copy_(torch.cat([up, gate], dim=1))


def _shared_expert_gate_of_one_half(parameters: Parameters) -> None:
    for weight in _every(parameters, "mlp.shared_expert_gate.weight"):
        weight.zero_()


MISTAKES: dict[str, Callable[[Parameters], None]] = {
    "3 final norm without its 1": lambda parameters: _subtract_one(parameters, "model.norm.weight"),
    "3 input norms without their 1": lambda parameters: _subtract_one(parameters, "input_layernorm.weight"),
    "3 query norm without its 1": lambda parameters: _subtract_one(parameters, "q_norm.weight"),
    "3 key norm without its 1": lambda parameters: _subtract_one(parameters, "k_norm.weight"),
    "3 gated norm with a 1": _add_one_to_the_gated_norm,
    "4 all queries before all gates": _all_queries_before_all_gates,
    "5 up before gate": _up_before_gate,
    "5 shared expert's gate ignored": _shared_expert_gate_of_one_half,
}


def _logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(PROMPT)[None]).logits[0].numpy()
    return logits


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_3_4_5_a_mistake_of_layout_would_be_seen(tiny_checkpoint: Path, mistake: Callable[[Parameters], None]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    right = _logits(model)
    mistake({name: parameter.data for name, parameter in model.named_parameters()})
    assert np.abs(_logits(model) - right).max() > 0.01, "a hundred times what the conformance tests tolerate"


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_5_tied_router_scores_choose_top_k_experts_with_equal_weights(
    tiny_checkpoint: Path, tmp_path: Path, target: str
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    tensors = load_file(checkpoint / "model.safetensors")
    for name, tensor in tensors.items():
        # All experts are equal and tie for every token, so the answer is the same for every choice.
        if name.endswith("mlp.gate.weight") or ".mlp.experts." in name:
            tensors[name] = tensor[:1].expand_as(tensor).contiguous()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    export_checkpoint(checkpoint, tmp_path / "artifact", ExportOptions(target=target, weights="fp32"))
    expected = _logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval())
    np.testing.assert_allclose(
        artifact_logits(open_artifact(tmp_path / "artifact"), PROMPT), expected, atol=1e-4, rtol=0
    )
