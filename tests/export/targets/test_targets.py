"""The two targets: the portable one is plain ONNX, and both give the results of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions
from qwonnx.export.errors import RecipeError, VerificationError
from qwonnx.export.evaluation.decoder_session import DecoderSession
from qwonnx.export.evaluation.router_outputs import with_router_outputs
from qwonnx.export.evaluation.verify import VerificationReport, artifact_logits, measure
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import NativeLibrary
from tests.export.decoder import Decoder, reference_evaluator

Export = Callable[[ExportOptions], Artifact]


@pytest.fixture(scope="module")
def prompt() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, 48)


def _reference_logits(checkpoint: Path, token_ids: np.ndarray) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(token_ids)[None]).logits[0].numpy()
    return logits


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_the_portable_graph_uses_no_domain_but_onnx_and_ours(export_tiny: Export, weights: str) -> None:
    path = export_tiny(ExportOptions(target="portable", weights=weights)).file("decoder.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    imported = {opset.domain for owner in (model, *model.functions) for opset in owner.opset_import}
    used = {node.domain for owner in (model.graph, *model.functions) for node in owner.node}
    assert imported | used <= {"", "ai.onnx", "ai.qwonnx"}
    assert b"com.microsoft" not in path.read_bytes()


def test_the_cpu_graph_uses_only_those_of_our_operators_that_native_kernels_run(export_tiny: Export) -> None:
    parts = ("CausalConv", "GatedDeltaRule", "GatedRMSNorm")  # of linear attention: nodes, or in the function of one
    names = ("AttentionInputs", "DeltaNet", "Linear", "Mixture", "NormLinear")
    fused = ("GatedAttention", *(f"Quantized{name}" for name in names), "RotaryAngles")
    apart = ("CausalConv", "GatedAttention", *parts[1:], "RotaryAngles")
    for weights, operators in (("fp32", apart), ("int4", fused)):
        artifact = export_tiny(ExportOptions(weights=weights))
        path = artifact.file("decoder.onnx")
        onnx.checker.check_model(str(path), full_check=False)
        model = onnx.load(path, load_external_data=False)
        assert {node.domain for node in model.graph.node} <= {"", "com.microsoft", "ai.qwonnx"}
        assert artifact.decoder.native_operators == operators
        assert {node.op_type for node in model.graph.node if node.domain == "ai.qwonnx"} == set(operators)
        assert {function.name for function in model.functions} == {*operators, *parts}
        called = [node for function in model.functions for node in function.node]
        assert {node.domain for node in called} <= {"", "com.microsoft", "ai.qwonnx"}
        assert {node.op_type for node in called if node.domain == "ai.qwonnx"} <= {*parts}


def test_no_trace_of_the_exporting_machine_is_left_in_the_graph(export_tiny: Export) -> None:
    content = export_tiny(ExportOptions(weights="int4")).file("decoder.onnx").read_bytes()
    for trace in (b"site-packages", b"modeling/", str(Path.home()).encode() + b"/"):
        assert trace not in content


@pytest.mark.parametrize("engine", ["onnxruntime", "onnx.reference"])
def test_the_portable_fp32_artifact_equals_transformers(
    export_tiny: Export, tiny_checkpoint: Path, prompt: np.ndarray, engine: str
) -> None:
    artifact = export_tiny(ExportOptions(target="portable", weights="fp32"))
    session = reference_evaluator(artifact) if engine == "onnx.reference" else None
    logits = Decoder(artifact, max_model_len=64, session=session).prefill(prompt, [17, 30, 1])
    np.testing.assert_allclose(logits, _reference_logits(tiny_checkpoint, prompt), atol=1e-3, rtol=0)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_portable_in_onnx_reference_equals_portable_in_onnxruntime(
    export_tiny: Export, prompt: np.ndarray, weights: str
) -> None:
    artifact = export_tiny(ExportOptions(target="portable", weights=weights))
    by_reference = Decoder(artifact, max_model_len=32, session=reference_evaluator(artifact))
    by_onnxruntime = Decoder(artifact, max_model_len=32)
    for chunk in (prompt[:15], prompt[15:16]):
        np.testing.assert_allclose(by_reference.step(chunk[None]), by_onnxruntime.step(chunk[None]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_cpu_kernels_with_float_activations_equal_the_function_bodies(
    export_tiny: Export, prompt: np.ndarray, weights: str
) -> None:
    portable = artifact_logits(export_tiny(ExportOptions(target="portable", weights=weights)), prompt)
    artifact = export_tiny(ExportOptions(weights=weights, activations="float32"))
    for kernels in (Kernels.AUTO, Kernels.ONNXRUNTIME):
        np.testing.assert_allclose(artifact_logits(artifact, prompt, kernels=kernels), portable, atol=1e-3, rtol=0)


def test_a_recipe_that_mixes_bits_means_the_same_on_both_targets(export_tiny: Export, prompt: np.ndarray) -> None:
    rules = (Rule("layers.*.mlp.experts.down_proj", 8), Rule("layers.3.self_attn.*", 32), Rule("*.out_proj.weight", 8))
    recipe = Recipe("int4", 64, rules)
    portable = artifact_logits(export_tiny(ExportOptions(target="portable", recipe=recipe)), prompt)
    artifact = export_tiny(ExportOptions(activations="float32", recipe=recipe))
    for kernels in (Kernels.AUTO, Kernels.ONNXRUNTIME):
        np.testing.assert_allclose(artifact_logits(artifact, prompt, kernels=kernels), portable, atol=1e-3, rtol=0)


def test_native_kernels_run_experts_whose_matrices_have_different_bits(
    export_tiny: Export, prompt: np.ndarray, library: NativeLibrary
) -> None:
    recipe = Recipe("int4", 64, (Rule("layers.*.mlp.experts.down_proj", 8),))
    portable = artifact_logits(export_tiny(ExportOptions(target="portable", recipe=recipe)), prompt)
    cpu = artifact_logits(export_tiny(ExportOptions(recipe=recipe)), prompt, kernels=Kernels.NATIVE)
    assert measure(portable, cpu, prompt).mean_kl < 0.2


@pytest.mark.parametrize(
    "rule", [Rule("layers.1.mlp.experts.down_proj", 32), Rule("layers.1.mlp.experts.down_proj", 4, 32)], ids=str
)
def test_experts_whose_matrices_do_not_go_together_are_refused(export_tiny: Export, rule: Rule) -> None:
    with pytest.raises(RecipeError, match=r"layers\.1\.mlp\.experts"):
        export_tiny(ExportOptions(recipe=Recipe("int4", 128, (rule,))))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_artifacts_equal_transformers_on_the_dequantised_weights(
    export_tiny: Export,
    dequantized_tiny: Callable[[str], Path],
    prompt: np.ndarray,
    weights: str,
    record_property: Callable[[str, object], None],
) -> None:
    expected = _reference_logits(dequantized_tiny(weights), prompt)

    def report(activations: str, kernels: Kernels) -> VerificationReport:
        artifact = export_tiny(ExportOptions(weights=weights, activations=activations))
        return measure(expected, artifact_logits(artifact, prompt, kernels=kernels), prompt)

    for kernels in (Kernels.AUTO, Kernels.ONNXRUNTIME):
        exact, fast = report("float32", kernels), report("int8", kernels)
        assert exact.mean_kl < 1e-3
        assert exact.top1_agreement == 1.0
        # What int8 activations cost is reported, and bounded loosely: random weights have flat logits.
        record_property(f"kl_int8_activations_{kernels}", fast.mean_kl)
        print(f"{weights}, {kernels}: KL {exact.mean_kl:.2e} with float32 and {fast.mean_kl:.2e} with int8 activations")
        assert fast.mean_kl < 0.2


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_what_routers_choose_can_be_read_at_the_wanted_positions(
    export_tiny: Export,
    tiny_checkpoint: Path,
    dequantized_tiny: Callable[[str], Path],
    prompt: np.ndarray,
    weights: str,
    target: str,
) -> None:
    artifact = export_tiny(ExportOptions(target=target, weights=weights, activations="float32"))
    facts = artifact.manifest.model
    wanted = np.array([3, 4, 20, 45, 47])
    routed = with_router_outputs(artifact.file("decoder.onnx"))
    assert len(routed.outputs) == facts.num_hidden_layers
    session = DecoderSession(artifact, graph=routed.graph, outputs=routed.outputs, num_threads=1)
    found: list[list[np.ndarray]] = [[] for _ in routed.outputs]
    logits = []
    for chunk in session.read(prompt, wanted, 16):
        logits.append(chunk.logits)
        for layer, (rows, name) in enumerate(zip(found, routed.outputs, strict=True), 1):
            scores = chunk.others[name].reshape(-1, facts.num_experts)
            is_last = layer == facts.num_hidden_layers  # which goes on with the wanted positions alone
            assert len(scores) == (len(chunk.wanted) if is_last else chunk.num_tokens)
            rows.append(scores if is_last else scores[chunk.wanted])
    np.testing.assert_allclose(np.concatenate(logits), artifact_logits(artifact, prompt)[wanted], atol=1e-3, rtol=0)
    checkpoint = tiny_checkpoint if weights == "fp32" else dequantized_tiny(weights)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor(prompt)[None], output_router_logits=True).router_logits
    for rows, layer_scores in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(rows), layer_scores[wanted].numpy(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("chunk", [1, 16, 48])
def test_only_wanted_logits_come_whatever_the_chunks(export_tiny: Export, prompt: np.ndarray, chunk: int) -> None:
    artifact = export_tiny(ExportOptions(weights="fp32", activations="float32"))
    wanted = np.array([0, 15, 16, 40])
    read = list(DecoderSession(artifact, num_threads=1).read(prompt, wanted, chunk))
    assert sum(one.num_tokens for one in read) == len(prompt)
    logits = np.concatenate([one.logits for one in read])
    np.testing.assert_allclose(logits, artifact_logits(artifact, prompt)[wanted], atol=1e-4, rtol=0)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(VerificationError, match="not an ONNX file"):
        with_router_outputs(tmp_path / "decoder.onnx")
