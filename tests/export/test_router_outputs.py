"""The decoder on plain arrays, and what its routers choose, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qwonnx.export import ExportOptions
from qwonnx.export.artifact import Artifact
from qwonnx.export.decoder_session import DecoderSession
from qwonnx.export.errors import VerificationError
from qwonnx.export.reference_model import load_reference_model
from qwonnx.export.router_outputs import with_router_outputs
from qwonnx.export.verify import artifact_logits
from tests.checkpoints.config_json import TINY_MOE, TINY_TEXT

pytestmark = pytest.mark.usefixtures("traced_once")

PROMPT = np.random.default_rng(5).integers(0, 1216, 50)
WANTED = np.array([3, 4, 20, 47, 49])
LAYERS, EXPERTS, TOP = TINY_TEXT["num_hidden_layers"], TINY_MOE["num_experts"], TINY_MOE["num_experts_per_tok"]

CASES = {
    "MoE": ExportOptions(weights="fp32"),
    "QMoE": ExportOptions(weights="int4"),
    "RoutedExperts": ExportOptions(target="portable", weights="fp32"),
    "QuantizedRoutedExperts": ExportOptions(weights="int8", activations="float32"),
}


@pytest.fixture(scope="module")
def scores(tiny_checkpoint: Path) -> np.ndarray:
    """transformers' router logits: float32 [layers, T, experts]."""
    model = load_reference_model(tiny_checkpoint)
    with torch.no_grad():
        logits = model(torch.tensor(PROMPT)[None], output_router_logits=True).router_logits
    found: np.ndarray = torch.stack(logits).numpy()
    return found


@pytest.mark.parametrize("chunk", [1, 16, 50])
def test_only_what_is_wanted_comes_whatever_the_chunks(tiny_fp32: Artifact, chunk: int) -> None:
    read = list(DecoderSession(tiny_fp32, num_threads=1).read(PROMPT, WANTED, chunk))
    assert sum(one.num_tokens for one in read) == len(PROMPT)
    logits = np.concatenate([one.logits for one in read])
    np.testing.assert_allclose(logits, artifact_logits(tiny_fp32, PROMPT)[WANTED], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_routers_of_every_kind_of_graph_are_found(
    case: str, export_tiny: Callable[[ExportOptions], Artifact], scores: np.ndarray
) -> None:
    artifact = export_tiny(CASES[case])
    routed = with_router_outputs(artifact.file("decoder.onnx"))
    session = DecoderSession(artifact, graph=routed.graph, outputs=routed.outputs, num_threads=1)
    assert len(routed.outputs) == LAYERS
    found = np.empty((LAYERS, len(WANTED), EXPERTS), np.float32)
    logits, done = [], 0
    for chunk in session.read(PROMPT, WANTED, 16):
        rows = slice(done, done + len(chunk.wanted))
        for layer, name in enumerate(routed.outputs):
            of_chunk = chunk.others[name].reshape(-1, EXPERTS)
            assert len(of_chunk) == (len(chunk.wanted) if layer == LAYERS - 1 else chunk.num_tokens)
            found[layer, rows] = of_chunk if layer == LAYERS - 1 else of_chunk[chunk.wanted]
        logits.append(chunk.logits)
        done = rows.stop
    expected = scores[:, WANTED]
    if CASES[case].weights == "fp32":
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)
        chosen, right = (np.sort(one.argsort(-1)[..., -TOP:], -1) for one in (found, expected))
        np.testing.assert_array_equal(chosen, right)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    np.testing.assert_allclose(np.concatenate(logits), artifact_logits(artifact, PROMPT, 16)[WANTED], atol=1e-3, rtol=0)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(VerificationError, match="no ONNX file"):
        with_router_outputs(tmp_path / "decoder.onnx")
