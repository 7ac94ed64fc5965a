"""Conformance 9: checkpoints in the official quantised formats, exported and compared with transformers.

transformers computes on the float32 weights that the stored codes stand for, which the checkpoints' writer works out
by itself (tests/checkpoints/quantized_formats.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.artifact import open_artifact
from qwonnx.export.recipe import Recipe, Rule
from qwonnx.export.verify import artifact_logits
from tests.checkpoints import write_tiny
from tests.checkpoints.quantized_formats import write_fp8, write_gptq

pytestmark = pytest.mark.usefixtures("traced_once")

PROMPT = np.random.default_rng(11).integers(0, 256, 40)
DENSE = "Qwen3_5ForConditionalGeneration"
# Sizes that 128 does not divide: blocks and groups at the ends of rows and columns are smaller.
RAGGED = {"hidden_size": 192, "moe_intermediate_size": 160, "shared_expert_intermediate_size": 96}

# Store in few bits what the checkpoint has quantised, and round nothing else.
KEEP_EXPERTS = Recipe("fp32", 0, (Rule("layers.*.mlp.experts.*", 4),))
KEEP_MLP = Recipe("fp32", 0, (Rule("layers.*.mlp.*_proj.weight", 4),))
TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint in a quantised format, and transformers' logits on the weights that it stands for."""

    folder: Path
    expected: np.ndarray
    keep: Recipe = KEEP_EXPERTS


def _logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(PROMPT)[None]).logits[0].numpy()
    return logits


def _exported(folder: Path, out: Path, options: ExportOptions) -> np.ndarray:
    export_checkpoint(folder, out, options)
    return artifact_logits(open_artifact(out, verify=True), PROMPT)


def _tiny(folder: Path, **options: Any) -> Path:
    text = {**TWO_LAYERS, **options.pop("text_overrides", {})}
    return write_tiny(folder, fused_experts=False, mtp=True, text_overrides=text, **options)


FP8_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "experts": ({}, {}),
    "ragged blocks, F32 scales, BF16 A_log": (
        {"text_overrides": RAGGED},
        {"scale_dtype": "F32", "decay_dtype": "BF16"},
    ),
    "dense, tied": ({"architecture": DENSE, "tie_word_embeddings": True}, {}),
}


@pytest.fixture(scope="module", params=list(FP8_CASES.values()), ids=list(FP8_CASES))
def fp8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    tiny, options = request.param
    root = tmp_path_factory.mktemp("fp8")
    write_fp8(_tiny(root / "float", **tiny), root / "quantized", root / "exact", **options)
    return Written(root / "quantized", _logits(root / "exact"))


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_9_an_fp8_checkpoint_equals_transformers_on_its_dequantised_weights(
    fp8: Written, tmp_path: Path, target: str
) -> None:
    logits = _exported(fp8.folder, tmp_path / "artifact", ExportOptions(target=target, weights="fp32"))
    np.testing.assert_allclose(logits, fp8.expected, atol=1e-4, rtol=0)


GPTQ_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "experts, groups of 32": ({}, {"group_size": 32}),
    "experts, ragged groups": ({"text_overrides": RAGGED}, {"group_size": 128, "scale_dtype": "BF16"}),
    "dense, groups of 128, tied": ({"architecture": DENSE, "tie_word_embeddings": True}, {"group_size": 128}),
    "experts, zero points": ({"text_overrides": RAGGED}, {"group_size": 32, "symmetric": False}),
    "dense, zero points": ({"architecture": DENSE}, {"group_size": 128, "symmetric": False}),
    "dense, whole rows, no g_idx": ({"architecture": DENSE}, {"group_size": -1, "with_g_idx": False}),
}


@pytest.fixture(scope="module", params=list(GPTQ_CASES.values()), ids=list(GPTQ_CASES))
def gptq(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    tiny, options = request.param
    root = tmp_path_factory.mktemp("gptq")
    write_gptq(_tiny(root / "float", **tiny), root / "quantized", root / "exact", **options)
    keep = KEEP_MLP if tiny.get("architecture") == DENSE else KEEP_EXPERTS
    return Written(root / "quantized", _logits(root / "exact"), keep)


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_9_a_gptq_checkpoint_that_keeps_its_codes_equals_transformers_on_its_dequantised_weights(
    gptq: Written, tmp_path: Path, target: str
) -> None:
    options = ExportOptions(target=target, activations="float32", recipe=gptq.keep)
    out = tmp_path / "artifact"
    logits = _exported(gptq.folder, out, options)
    np.testing.assert_allclose(logits, gptq.expected, atol=2e-4, rtol=0)
    kept = {
        group.storage for group in open_artifact(out).manifest.quantization.groups if group.kind in ("experts", "mlp")
    }
    assert kept == {"int4"}


def test_9_a_gptq_checkpoint_as_floats_equals_transformers_on_its_dequantised_weights(
    gptq: Written, tmp_path: Path
) -> None:
    logits = _exported(gptq.folder, tmp_path / "artifact", ExportOptions(weights="fp32"))
    np.testing.assert_allclose(logits, gptq.expected, atol=1e-4, rtol=0)
