"""Merged and pruned models: sizes that no published model has, odd wherever the model allows it.

The reference is transformers: in float32 on the checkpoint, and for int4 on weights rounded without the export's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.reference_model import load_reference_model
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.native.kernels import Kernels
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import TINY_TEXT
from tests.export.dequantized import write_dequantized

PROMPT = np.random.default_rng(5).integers(0, 250, 37)
EXPERTS, DENSE = "Qwen3_5MoeForCausalLM", "Qwen3_5ForCausalLM"
LINEAR, FULL = "linear_attention", "full_attention"


def experts(count: int, top_k: int, *layer_types: str, **sizes: Any) -> tuple[str, dict[str, Any]]:
    return EXPERTS, {"num_experts": count, "num_experts_per_tok": top_k, **_layers(layer_types), **sizes}


def dense(*layer_types: str, **sizes: Any) -> tuple[str, dict[str, Any]]:
    return DENSE, {**_layers(layer_types), **sizes}


def _layers(layer_types: tuple[str, ...]) -> dict[str, Any]:
    return {"num_hidden_layers": len(layer_types), "layer_types": list(layer_types)}


# Heads of 40 values, of which 10 are rotated.
HEADS_OF_40 = {"head_dim": 40, "rope_parameters": TINY_TEXT["rope_parameters"] | {"mrope_section": [3, 1, 1]}}
LINEAR_HEADS = {"linear_num_key_heads": 5, "linear_num_value_heads": 5, "linear_conv_kernel_dim": 3}

MODELS = {
    "7 of 16 experts, 3 chosen, full layers first and last": experts(7, 3, FULL, LINEAR, FULL),
    "odd sizes everywhere": dense(
        *(FULL, LINEAR, LINEAR),
        **HEADS_OF_40,
        **LINEAR_HEADS,
        num_attention_heads=5,
        num_key_value_heads=5,
        linear_key_head_dim=24,
        linear_value_head_dim=40,
        intermediate_size=77,
        hidden_size=75,
        vocab_size=1257,
    ),
    "5 experts, 1 chosen, one layer": experts(5, 1, FULL),
    "13 experts, 3 chosen, 5 layers": experts(13, 3, LINEAR, FULL, FULL, LINEAR, LINEAR),
    "all of 13 experts chosen, one linear layer": experts(13, 13, LINEAR),
    "one expert": experts(1, 1, LINEAR, FULL),
    "experts of odd inner sizes": experts(
        5, 3, LINEAR, FULL, moe_intermediate_size=37, shared_expert_intermediate_size=45
    ),
    "experts and hidden states of odd sizes": experts(
        5, 3, LINEAR, FULL, hidden_size=99, moe_intermediate_size=33, shared_expert_intermediate_size=35
    ),
    "3 heads with one key": dense(
        *(LINEAR, LINEAR, FULL),
        num_attention_heads=3,
        num_key_value_heads=1,
        linear_num_key_heads=3,
        linear_num_value_heads=9,
        intermediate_size=301,
        hidden_size=136,
    ),
    "linear layers only": dense(LINEAR, LINEAR, LINEAR),
    "linear heads of odd sizes": dense(
        LINEAR, FULL, linear_key_head_dim=17, linear_value_head_dim=19, intermediate_size=31
    ),
}
QUICK = list(MODELS)[:2]
CASES = [
    pytest.param(name, target, marks=() if name in QUICK and target == "cpu" else pytest.mark.soak)
    for name in MODELS
    for target in ("cpu", "portable")
]


def _reference_logits(folder: Path) -> np.ndarray:
    with torch.no_grad():
        output = load_reference_model(folder)(torch.tensor(PROMPT)[None], use_cache=False)
    logits: np.ndarray = output.logits[0].numpy()
    return logits


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_model_of_odd_sizes_equals_transformers(tmp_path: Path, name: str, target: str) -> None:
    architecture, text = MODELS[name]
    folder = write_tiny(tmp_path / "checkpoint", architecture=architecture, vision=False, text_overrides=text)
    (tmp_path / "rounded").mkdir()
    rounded = write_dequantized(folder, tmp_path / "rounded", "int4")
    expected = {"fp32": _reference_logits(folder), "int4": _reference_logits(rounded)}
    activations = "float32" if target == "cpu" else None
    for weights, logits in expected.items():
        out = tmp_path / weights
        export_checkpoint(folder, out, ExportOptions(target=target, weights=weights, activations=activations))
        artifact = open_artifact(out, verify=True)
        for kernels in (Kernels.NATIVE, Kernels.ONNXRUNTIME) if target == "cpu" else (Kernels.ONNXRUNTIME,):
            found = artifact_logits(artifact, PROMPT, kernels=kernels)
            np.testing.assert_allclose(found, logits, atol=3e-4, rtol=0, err_msg=f"{weights} {kernels}")
