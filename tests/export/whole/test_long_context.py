"""A context of a million tokens: positions, lengths and offsets that exceed the usual integer sizes.

A tiny model with YaRN stands for the real one, so that a whole cache of 1,010,000 positions fits a test. Keys and
values of most positions are drawn, not computed; transformers gets the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from tests.export.decoder import Decoder, onnxruntime_session

LONGEST = 1_010_000
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference(long_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(long_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def long_artifact(long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    made: dict[tuple[str, str], Artifact] = {}

    def export(target: str, kv: str = "float32") -> Artifact:
        if (target, kv) not in made:
            out = tmp_path_factory.mktemp("artifact") / f"{target}-{kv}"
            export_checkpoint(long_checkpoint, out, ExportOptions(target=target, weights="fp32", kv=kv))
            made[target, kv] = open_artifact(out)
        return made[target, kv]

    return export


def _prompt(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length)


def test_the_manifest_states_the_extended_context(long_artifact: Callable[..., Artifact]) -> None:
    assert long_artifact("cpu").manifest.model.max_position_embeddings == 4 * 262_144


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("axes", ["text", "three different axes"])
def test_a_short_cache_at_the_last_positions_equals_transformers(
    reference: Any, long_artifact: Callable[..., Artifact], target: str, axes: str
) -> None:
    prompt = _prompt(60, seed=1)
    positions = np.arange(LONGEST - 60, LONGEST)
    position_ids = np.stack([positions] * 3)
    if axes != "text":
        position_ids = np.stack([positions, positions[::-1] - 17, positions // 3 + 650_000])
    with torch.no_grad():
        expected = reference(torch.tensor(prompt)[None], position_ids=torch.tensor(position_ids[:, None])).logits[0]
    decoder = Decoder(long_artifact(target), max_model_len=64)
    logits = [
        decoder.step(prompt[None, start:stop], position_ids=position_ids[:, None, start:stop])[0]
        for start, stop in ((0, 37), (37, 58), (58, 59), (59, 60))
    ]
    np.testing.assert_allclose(np.concatenate(logits), expected.numpy(), atol=TOLERANCE, rtol=0)
    if axes != "text":
        with torch.no_grad():
            text = reference(torch.tensor(prompt)[None]).logits[0]
        assert float((text - expected).abs().max()) > 100 * TOLERANCE, "the axes must matter for this to mean anything"


def _drawn(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> np.ndarray:
    """The content of a buffer [1, 1, positions, width]: values or codes that repeat only after a long period."""
    rng = np.random.default_rng(seed)
    period = (1, 1, 9973, shape[3])
    if dtype == np.float32:
        drawn = rng.standard_normal(period, np.float32)
    else:
        drawn = rng.integers(0, 256, period, np.uint8).view(dtype)
    return np.tile(drawn, (1, 1, -(-shape[2] // period[2]), 1))[:, :, : shape[2]]


def _meant(stored: np.ndarray, artifact: Artifact, name: str) -> torch.Tensor:
    """The float32 keys or values of a buffer's content."""
    if stored.dtype == np.float32:
        return torch.tensor(stored)
    if stored.dtype == np.uint8:
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:3], -1).astype(np.int8) - 8
    model = onnx.load(artifact.file("decoder.onnx"), load_external_data=False)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(f"self_attn.{name}_scale"))
    return torch.tensor(stored.astype(np.float32) * onnx.numpy_helper.to_array(scale))


@pytest.mark.parametrize(
    ("target", "kv"), [("cpu", "float32"), ("portable", "float32"), ("cpu", "int8"), ("cpu", "int4")]
)
def test_the_last_tokens_of_a_million_equal_transformers(
    reference: Any, long_artifact: Callable[..., Artifact], target: str, kv: str
) -> None:
    """The first token and the last six are computed; the cache between them is drawn, for transformers as well."""
    artifact, past = long_artifact(target, kv), LONGEST - 6
    tokens = _prompt(7, seed=2)
    decoder = Decoder(artifact, max_model_len=LONGEST)
    decoder.step(tokens[None, :1])
    with torch.no_grad():
        cache = reference(torch.tensor(tokens[None, :1]), use_cache=True).past_key_values
    attention = cache.layers[1]
    for seed, kind in ((3, "key"), (4, "value")):
        state = decoder.state(1, kind)[:, :, :past]
        state[:, :, 1:] = _drawn(state[:, :, 1:].shape, state.dtype, seed)
        setattr(attention, kind + "s", _meant(state, artifact, kind))
    decoder.lengths = np.array([past])

    start = past
    for width in (3, 1, 1, 1):
        chunk, place = tokens[None, 1 + start - past :][:, :width], torch.arange(start, start + width)
        with torch.no_grad():
            expected = reference(
                torch.tensor(chunk), past_key_values=cache, position_ids=place.expand(3, 1, width), use_cache=True
            ).logits[0]
        np.testing.assert_allclose(decoder.step(chunk)[0], expected.numpy(), atol=TOLERANCE, rtol=0)
        start += width
    assert start == LONGEST
    for kind in ("key", "value"):
        ours = _meant(decoder.state(1, kind)[:, :, past:], artifact, kind)
        tolerance = {"float32": TOLERANCE, "int8": 0.2, "int4": 2.0}[kv]  # half a code
        np.testing.assert_allclose(ours, getattr(attention, kind + "s")[:, :, past:], atol=tolerance, rtol=0)


def test_every_length_and_position_of_the_manifest_has_64_bits(long_artifact: Callable[..., Artifact]) -> None:
    for graph in long_artifact("cpu").manifest.graphs.values():
        assert {spec.name: spec.dtype for spec in graph.inputs} == dict.fromkeys(
            ("input_ids", "position_ids", "past_lengths", "logit_positions"), "int64"
        )
    session = onnxruntime_session(long_artifact("cpu"))
    assert {value.type for value in session.get_inputs() if "past_key_values" not in value.name} == {"tensor(int64)"}
