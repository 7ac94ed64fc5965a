"""A context of a million tokens: positions, lengths and offsets that do not fit what is usually enough for them.

A tiny model with YaRN stands for the real one, so that a whole cache of 1,010,000 positions fits a test. Keys and
values of most positions are drawn, not computed; transformers gets the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.artifact import Artifact, open_artifact
from tests.export.decoder import Decoder, onnxruntime_session

LONGEST = 1_010_000
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference(long_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(long_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def long_artifact(long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    made: dict[str, Artifact] = {}

    def export(target: str) -> Artifact:
        if target not in made:
            out = tmp_path_factory.mktemp("artifact") / target
            export_checkpoint(long_checkpoint, out, ExportOptions(target=target, weights="fp32"))
            made[target] = open_artifact(out)
        return made[target]

    return export


def _prompt(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length)


def test_the_manifest_states_the_extended_context(long_artifact: Callable[[str], Artifact]) -> None:
    assert long_artifact("cpu").manifest.model.max_position_embeddings == 4 * 262_144


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("axes", ["text", "three different axes"])
def test_a_short_cache_at_the_last_positions_equals_transformers(
    reference: Any, long_artifact: Callable[[str], Artifact], target: str, axes: str
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


def _filled(num_positions: int, head_dim: int, seed: int) -> torch.Tensor:
    """[1, 1, num_positions, head_dim]: values that repeat, but not soon."""
    period = np.random.default_rng(seed).standard_normal((1, 1, 9973, head_dim), np.float32)
    repeats = -(-num_positions // period.shape[2])
    return torch.tensor(np.tile(period, (1, 1, repeats, 1))[:, :, :num_positions])


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_the_last_tokens_of_a_million_equal_transformers(
    reference: Any, long_artifact: Callable[[str], Artifact], target: str
) -> None:
    """The first token and the last six are computed; the cache between them is drawn."""
    artifact, past = long_artifact(target), LONGEST - 6
    tokens = _prompt(7, seed=2)
    decoder = Decoder(artifact, max_model_len=LONGEST)
    decoder.step(tokens[None, :1])
    with torch.no_grad():
        cache = reference(torch.tensor(tokens[None, :1]), use_cache=True).past_key_values
    attention = cache.layers[1]
    for seed, kind, first in ((3, "key", attention.keys), (4, "value", attention.values)):
        filled = _filled(past, first.shape[-1], seed)
        filled[:, :, :1] = first
        decoder.state(1, kind)[:, :, :past] = filled.numpy()
        setattr(attention, kind + "s", filled)
    decoder.lengths = np.array([past])

    logits, start = [], past
    for width in (3, 1, 1, 1):
        chunk, place = tokens[None, 1 + start - past :][:, :width], torch.arange(start, start + width)
        with torch.no_grad():
            expected = reference(
                torch.tensor(chunk), past_key_values=cache, position_ids=place.expand(3, 1, width), use_cache=True
            ).logits[0]
        logits.append((decoder.step(chunk)[0], expected.numpy()))
        start += width
    assert start == LONGEST
    for ours, theirs in logits:
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
    for kind in ("key", "value"):
        ours, theirs = decoder.state(1, kind)[:, :, past:], getattr(attention, kind + "s")[:, :, past:]
        np.testing.assert_allclose(ours, theirs.numpy(), atol=TOLERANCE, rtol=0)


def test_every_length_and_position_of_the_manifest_has_64_bits(long_artifact: Callable[[str], Artifact]) -> None:
    for graph in long_artifact("cpu").manifest.graphs.values():
        assert {spec.name: spec.dtype for spec in graph.inputs} == dict.fromkeys(
            ("input_ids", "position_ids", "past_lengths", "logit_positions"), "int64"
        )
    session = onnxruntime_session(long_artifact("cpu"))
    assert {value.type for value in session.get_inputs() if "past_key_values" not in value.name} == {"tensor(int64)"}
