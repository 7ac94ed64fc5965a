"""The decoder over an int8 or int4 cache: its difference from the float cache is bounded, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qwonnx.export import ExportOptions
from qwonnx.export.evaluation.verify import artifact_logits, measure
from qwonnx.runtime.artifact.folder import Artifact
from tests.export.decoder import Decoder, onnxruntime_session, reference_evaluator

Export = Callable[[ExportOptions], Artifact]

# A sum in another order can push a value to the next code. The effect on a logit of size 3 is bounded, but not small.
ONE_CODE = {"int8": 0.01, "int4": 0.1}


def _prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length)


def _assert_close(actual: np.ndarray, expected: np.ndarray, kv: str) -> None:
    """Equal, except for a few values that were rounded to the other side."""
    difference = np.abs(actual - expected)
    assert np.median(difference) < 1e-4
    assert difference.max() < ONE_CODE[kv]


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_the_manifest_states_the_cache(export_tiny: Export, kv: str) -> None:
    manifest = export_tiny(ExportOptions(weights="fp32", kv=kv)).manifest
    dtype, width = {"int8": ("int8", 32), "int4": ("uint8", 16)}[kv]
    assert manifest.quantization.kv == kv
    for state in manifest.graphs["decoder"].states:
        if state.kind in ("key", "value"):
            assert (state.dtype, state.shape) == (dtype, ("batch", 2, "max_model_len", width))
        else:
            assert state.dtype == "float32"


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_the_graphs_states_are_the_manifests(export_tiny: Export, kv: str, target: str) -> None:
    artifact = export_tiny(ExportOptions(target=target, weights="fp32", kv=kv))
    session = onnxruntime_session(artifact)
    found = {value.name: (value.type, value.shape[-1]) for value in (*session.get_inputs(), *session.get_outputs())}
    for state in artifact.decoder.states:
        kind = {"float32": "tensor(float)", "int8": "tensor(int8)", "uint8": "tensor(uint8)"}[state.dtype]
        assert found[state.past] == found[state.present] == (kind, state.shape[-1])


@pytest.mark.parametrize(("kv", "num_tokens", "most"), [("int8", 300, 2e-4), ("int8", 4000, 1e-4), ("int4", 300, 1e-2)])
def test_the_loss_against_the_float_cache_is_bounded(
    export_tiny: Export, tiny_fp32: Artifact, kv: str, num_tokens: int, most: float
) -> None:
    prompt = _prompt(num_tokens)
    artifact = export_tiny(ExportOptions(weights="fp32", kv=kv))
    report = measure(artifact_logits(tiny_fp32, prompt), artifact_logits(artifact, prompt), prompt)
    print(f"{kv}, {num_tokens} tokens: KL {report.mean_kl:.2e}, top-1 agreement {report.top1_agreement:.2%}")
    assert 0 < report.mean_kl < most


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_both_targets_compute_the_same(export_tiny: Export, kv: str) -> None:
    prompt = _prompt(60, seed=1)
    cpu, portable = (
        artifact_logits(export_tiny(ExportOptions(target=target, weights="fp32", kv=kv)), prompt)
        for target in ("cpu", "portable")
    )
    _assert_close(cpu, portable, kv)


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_the_portable_graph_runs_in_onnx_reference(export_tiny: Export, kv: str) -> None:
    artifact = export_tiny(ExportOptions(target="portable", weights="fp32", kv=kv))
    by_reference = Decoder(artifact, max_model_len=32, session=reference_evaluator(artifact))
    by_onnxruntime = Decoder(artifact, max_model_len=32)
    prompt = _prompt(16, seed=2)
    for chunk in (prompt[:15], prompt[15:]):
        _assert_close(by_reference.step(chunk[None]), by_onnxruntime.step(chunk[None]), kv)


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_chunks_of_any_size_leave_the_logits_and_the_cache_of_one(export_tiny: Export, kv: str, target: str) -> None:
    artifact = export_tiny(ExportOptions(target=target, weights="fp32", kv=kv))
    session, prompt = onnxruntime_session(artifact), _prompt(90, seed=3)
    whole = Decoder(artifact, session=session)
    expected = whole.prefill(prompt, [90])
    for chunks in ([1], [1, 3, 63, 64], [32]):
        decoder = Decoder(artifact, session=session)
        _assert_close(decoder.prefill(prompt, chunks), expected, kv)
        for kind in ("key", "value"):
            ours, theirs = (one.state(3, kind).astype(int) for one in (decoder, whole))
            assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_rows_of_different_lengths_decode_together_as_alone(export_tiny: Export, kv: str) -> None:
    artifact = export_tiny(ExportOptions(weights="fp32", kv=kv))
    session, prompts = onnxruntime_session(artifact), [_prompt(5, seed=4), _prompt(31, seed=5)]
    alone = [Decoder(artifact, session=session) for _ in prompts]
    for decoder, prompt in zip(alone, prompts, strict=True):
        decoder.prefill(prompt, [16])
    together = Decoder(artifact, batch=2, session=session)
    together.lengths = np.array([5, 31])
    together.states = {name: np.concatenate([one.states[name] for one in alone]) for name in together.states}
    for token in (1, 2, 3):
        logits = together.step([[token], [token + 7]])
        for row, decoder in enumerate(alone):
            _assert_close(logits[row], decoder.step([[token + 7 * row]])[0], kv)
