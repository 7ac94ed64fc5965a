"""Conformance 9: checkpoints in the official quantised formats, exported and compared with transformers.

transformers computes on the dequantised float32 weights, which the checkpoints' writer computes independently
(tests/checkpoints/quantized_formats.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.weight_source import SkippedPart
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.native.kernels import Kernels
from tests.checkpoints import write_tiny
from tests.checkpoints.every_format import FORMATS, write_format
from tests.checkpoints.quantized_formats import write_fp8, write_gptq
from tests.export.verified import verified

pytestmark = pytest.mark.usefixtures("traced_once")

PROMPT = np.random.default_rng(11).integers(0, 256, 40)
DENSE = "Qwen3_5ForConditionalGeneration"
ALL_PROJECTIONS = r"layers.*_proj(_qkv|_z)?\.weight$"

# Sizes that 128 does not divide: blocks and groups at the ends of rows and columns are smaller.
SIZES = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "hidden_size": 192,
    "moe_intermediate_size": 160,
    "shared_expert_intermediate_size": 96,
}

# Store the weights that the checkpoint has quantised in few bits, and round no others.
KEEP_EXPERTS = Recipe("fp32", 0, (Rule("layers.*.mlp.experts.*", 4),))
KEEP_MLP = Recipe("fp32", 0, (Rule("layers.*.mlp.*_proj.weight", 4),))
KEEP_PROJECTIONS = Recipe("fp32", 0, (Rule("layers.*_proj*", 4),))


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint in a quantised format, its dequantised float32 one, and transformers' logits on the latter."""

    folder: Path
    exact: Path
    expected: np.ndarray


def _logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(PROMPT)[None]).logits[0].numpy()
    return logits


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts one tensor each, as the quantised releases have them, with a draft head and a vision tower."""
    folder = tmp_path_factory.mktemp("experts") / "float"
    return write_tiny(folder, fused_experts=False, mtp=True, text_overrides=SIZES)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "float"
    return write_tiny(folder, architecture=DENSE, tie_word_embeddings=True, mtp=True, text_overrides=SIZES)


def _exported(folder: Path, out: Path, options: ExportOptions) -> Artifact:
    export_checkpoint(folder, out, options)
    return open_artifact(out, verify=True)


FP8_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "experts": ("experts", {}),
    "experts, F32 scales, BF16 A_log": ("experts", {"scale_dtype": "F32", "decay_dtype": "BF16"}),
    "dense, tied": ("dense", {}),
}


@pytest.fixture(scope="module", params=list(FP8_CASES.values()), ids=list(FP8_CASES))
def fp8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    source, options = request.param
    root = tmp_path_factory.mktemp("fp8")
    write_fp8(request.getfixturevalue(source), root / "quantized", root / "exact", **options)
    return Written(root / "quantized", root / "exact", _logits(root / "exact"))


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_9_an_fp8_checkpoint_equals_transformers_on_its_dequantised_weights(
    fp8: Written, tmp_path: Path, target: str
) -> None:
    artifact = _exported(fp8.folder, tmp_path / "artifact", ExportOptions(target=target, weights="fp32"))
    assert artifact.manifest.source.dtype == "float8_e4m3"
    np.testing.assert_allclose(artifact_logits(artifact, PROMPT), fp8.expected, atol=2e-4, rtol=0)


GPTQ_CASES: dict[str, tuple[str, Recipe, dict[str, Any]]] = {
    "experts, groups of 32": ("experts", KEEP_EXPERTS, {"group_size": 32}),
    "experts, groups of 128": ("experts", KEEP_EXPERTS, {"group_size": 128, "scale_dtype": "BF16"}),
    "experts, zero points": ("experts", KEEP_EXPERTS, {"group_size": 32, "symmetric": False}),
    "experts, zero points, 8 bits": ("experts", KEEP_EXPERTS, {"bits": 8, "symmetric": False}),
    "dense, groups of 128": ("dense", KEEP_MLP, {"group_size": 128}),
    "dense, whole rows, no g_idx": ("dense", KEEP_MLP, {"group_size": -1, "with_g_idx": False}),
    "tied embedding, zero points": (
        "dense",
        Recipe("fp32", 0, (Rule("embed_tokens.weight", 4),)),
        {"group_size": 64, "pattern": r"embed_tokens\.weight$", "symmetric": False},
    ),
    "all projections, joined": ("dense", KEEP_PROJECTIONS, {"group_size": 32, "pattern": ALL_PROJECTIONS}),
    "all projections, zero points": (
        "dense",
        KEEP_PROJECTIONS,
        {"group_size": 64, "pattern": ALL_PROJECTIONS, "symmetric": False},
    ),
}


@pytest.fixture(scope="module", params=list(GPTQ_CASES.values()), ids=list(GPTQ_CASES))
def gptq(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, Recipe]:
    source, recipe, options = request.param
    root = tmp_path_factory.mktemp("gptq")
    write_gptq(request.getfixturevalue(source), root / "quantized", root / "exact", **options)
    return Written(root / "quantized", root / "exact", _logits(root / "exact")), recipe


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_9_a_gptq_checkpoint_keeps_its_codes_and_equals_transformers_on_its_dequantised_weights(
    gptq: tuple[Written, Recipe], tmp_path: Path, target: str
) -> None:
    written, recipe = gptq
    options = ExportOptions(target=target, activations="float32", recipe=recipe)
    artifact = _exported(written.folder, tmp_path / "artifact", options)
    assert artifact.manifest.source.dtype.startswith("gptq-int")
    for kernels in (Kernels.AUTO, Kernels.ONNXRUNTIME):
        logits = artifact_logits(artifact, PROMPT, kernels=kernels)
        np.testing.assert_allclose(logits, written.expected, atol=5e-4, rtol=0)
    _assert_codes_stand_for(artifact, written.exact)


def test_9_a_gptq_checkpoint_as_floats_equals_transformers_on_its_dequantised_weights(
    gptq: tuple[Written, Recipe], tmp_path: Path
) -> None:
    written, _ = gptq
    artifact = _exported(written.folder, tmp_path / "artifact", ExportOptions(weights="fp32"))
    np.testing.assert_allclose(artifact_logits(artifact, PROMPT), written.expected, atol=2e-4, rtol=0)


def _assert_codes_stand_for(artifact: Artifact, exact: Path) -> None:
    """Every quantised initializer of the decoder equals, to the bit, the rows of the float32 checkpoint."""
    graph = onnx.load(artifact.file("decoder.onnx")).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    expected = load_file(exact / "model.safetensors")
    names = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    assert names
    for name in names:
        codes, scales = tensors[f"{name}.codes"], tensors[f"{name}.scales"]
        num_rows, num_blocks = scales.reshape(-1, scales.shape[-1]).shape
        rows = [_expected_rows(part, expected) for part in _parts(name)]
        weights = np.concatenate(rows)
        bits = codes.size * 8 // weights.size
        centred = _unpacked(codes.reshape(num_rows, -1), bits).reshape(num_rows, num_blocks, -1)
        zero_points = tensors.get(f"{name}.zero_points", np.full((num_rows, num_blocks), 0x88 if bits == 4 else 0x80))
        offsets = _unpacked(zero_points.reshape(num_rows, -1).astype(np.uint8), bits)[:, :num_blocks, None]
        meaning = (centred - offsets) * scales.reshape(num_rows, num_blocks, 1)
        np.testing.assert_array_equal(meaning.reshape(weights.shape), weights, err_msg=name)


def _parts(name: str) -> list[str]:
    """layers.1.self_attn.k_proj+v_proj.weight -> the two names that it joins."""
    *outer, joined, last = name.rsplit(".", 2) if name.endswith(".weight") else (name, "", "")
    return [".".join((*outer, part, last)) for part in joined.split("+")] if joined else [name]


def _expected_rows(name: str, expected: dict[str, np.ndarray]) -> np.ndarray:
    prefix = "model.language_model."
    if not (experts := re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)):
        return expected[prefix + name]
    rows = []
    for expert in range(16):
        stem = f"{prefix}{experts[1]}.{expert}."
        if experts[2] == "down_proj":
            rows.append(expected[f"{stem}down_proj.weight"])
        else:  # gate and up rows alternate
            gate, up = (expected[f"{stem}{part}_proj.weight"] for part in ("gate", "up"))
            rows.append(np.stack([gate, up], 1).reshape(-1, gate.shape[1]))
    return np.concatenate(rows)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)
    return values.astype(np.float32)


# One of each kind of reader is in the default run; test_every_format.py compares the weights of all.
_QUICK = ("w4a16-asymmetric", "awq", "nvfp4", "nf4-nested")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.soak) for name in FORMATS]
)
def test_9_every_format_equals_transformers_on_its_dequantised_weights(
    experts: Path, tmp_path: Path, name: str
) -> None:
    folder = write_format(experts, tmp_path / "quantized", name, tmp_path / "exact")
    keeps = FORMATS[name].keeps_codes
    recipe = KEEP_PROJECTIONS if keeps else Recipe.preset("fp32")
    artifact = _exported(folder, tmp_path / "artifact", ExportOptions(activations="float32", recipe=recipe))
    difference = np.abs(artifact_logits(artifact, PROMPT) - _logits(tmp_path / "exact")).max()
    assert difference < 1e-3
    if keeps:
        _assert_codes_stand_for(artifact, tmp_path / "exact")


@pytest.mark.parametrize("name", ["fp8-dynamic", pytest.param("fp8-compressed-block", marks=pytest.mark.soak)])
def test_9_experts_in_one_tensor_of_fp8_equal_transformers_on_their_values(tmp_path: Path, name: str) -> None:
    source = write_tiny(tmp_path / "float", text_overrides=SIZES)
    pattern = r"language_model.*experts\.(gate_up_proj|down_proj)$"
    folder = write_format(source, tmp_path / "quantized", name, tmp_path / "exact", pattern)
    artifact = _exported(folder, tmp_path / "artifact", ExportOptions(weights="fp32"))
    np.testing.assert_allclose(artifact_logits(artifact, PROMPT), _logits(tmp_path / "exact"), atol=1e-3, rtol=0)


def test_9_experts_of_which_only_gate_and_up_are_quantised_mean_the_same_on_both_targets(
    experts: Path, tmp_path: Path
) -> None:
    write_gptq(
        experts,
        tmp_path / "quantized",
        tmp_path / "exact",
        group_size=64,
        symmetric=False,
        pattern=r"language_model.*experts\.\d+\.(gate|up)_proj",
    )

    def logits(target: str) -> np.ndarray:
        options = ExportOptions(target=target, activations="float32", recipe=KEEP_EXPERTS)
        return artifact_logits(_exported(tmp_path / "quantized", tmp_path / target, options), PROMPT)

    np.testing.assert_allclose(logits("cpu"), logits("portable"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["fp8", "gptq"])
def test_9_verify_compares_with_the_weights_that_a_quantised_checkpoint_stands_for(
    experts: Path, tmp_path: Path, kind: str
) -> None:
    write = write_fp8 if kind == "fp8" else write_gptq
    write(experts, tmp_path / "quantized", tmp_path / "exact")
    recipe = KEEP_EXPERTS if kind == "gptq" else Recipe.preset("fp32")
    options = ExportOptions(activations="float32", recipe=recipe)
    _exported(tmp_path / "quantized", tmp_path / "artifact", options)
    report = verified(tmp_path / "artifact", tmp_path / "quantized")
    assert report.max_logit_difference < 1e-3
    assert report.top1_agreement == 1.0


@pytest.mark.parametrize("kind", ["fp8", "gptq"])
def test_3_the_draft_head_and_the_vision_tower_are_skipped_in_every_format(
    experts: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "fp8":
        write_fp8(experts, tmp_path / "quantized", tmp_path / "exact")
    else:
        write_gptq(experts, tmp_path / "quantized", tmp_path / "exact", pattern=r"[^ab]_proj\.weight$")
    skipped: list[SkippedPart] = []
    export_checkpoint(tmp_path / "quantized", tmp_path / "artifact", on_skipped=skipped.append)
    stored = Checkpoint.open(tmp_path / "quantized")
    for part, prefix in zip(skipped, ("mtp.", "model.visual."), strict=True):
        sizes = [stored.info(name).num_bytes for name in stored.names if name.startswith(prefix)]
        assert (part.num_tensors, part.num_bytes) == (len(sizes), sum(sizes))
