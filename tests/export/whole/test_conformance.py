"""The decoder against transformers, in float32, on weights that differ from every default initialisation.

The checkpoint under test has random norms, gates, q and k. Numbers in the names refer to the conformance list of the
model's specification.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions
from qwonnx.runtime.artifact.folder import Artifact
from tests.export.decoder import Decoder, onnxruntime_session

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def session(tiny_fp32: Artifact) -> Any:
    return onnxruntime_session(tiny_fp32)


def _prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length)


def _reference_run(reference: Any, token_ids: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits [T, vocab_size] and the cache of one sequence."""
    with torch.no_grad():
        output = reference(torch.tensor(token_ids)[None], use_cache=True)
    return output.logits[0].numpy(), output.past_key_values


def _assert_states_equal(decoder: Decoder, cache: Any, artifact: Artifact, length: int) -> None:
    for layer, layer_type in enumerate(artifact.manifest.model.layer_types):
        theirs = cache.layers[layer]
        if layer_type == "full_attention":
            pairs = [
                (decoder.state(layer, "key")[:, :, :length], theirs.keys),
                (decoder.state(layer, "value")[:, :, :length], theirs.values),
            ]
        else:
            # transformers keeps kernel_size columns of the convolution's inputs; the last kernel_size - 1 matter.
            pairs = [
                (decoder.state(layer, "conv_state"), theirs.conv_states[0][..., -3:]),
                (decoder.state(layer, "recurrent_state"), theirs.recurrent_states[0]),
            ]
        for ours, expected in pairs:
            np.testing.assert_allclose(ours, expected.numpy(), atol=TOLERANCE, rtol=1e-3)


@pytest.mark.parametrize("chunks", [[300], [1, 3, 63, 64, 65], [63], [64], [65], [7, 128]], ids=str)
def test_1_prefill_in_any_chunks_equals_transformers(
    reference: Any, session: Any, tiny_fp32: Artifact, chunks: list[int]
) -> None:
    prompt = _prompt(300)
    expected, cache = _reference_run(reference, prompt)
    decoder = Decoder(tiny_fp32, session=session)
    np.testing.assert_allclose(decoder.prefill(prompt, chunks), expected, atol=TOLERANCE, rtol=0)
    _assert_states_equal(decoder, cache, tiny_fp32, 300)


def test_1_token_by_token_equals_transformers(reference: Any, session: Any, tiny_fp32: Artifact) -> None:
    prompt = _prompt(70, seed=1)
    expected, cache = _reference_run(reference, prompt)
    decoder = Decoder(tiny_fp32, session=session)
    np.testing.assert_allclose(decoder.prefill(prompt, [1]), expected, atol=TOLERANCE, rtol=0)
    _assert_states_equal(decoder, cache, tiny_fp32, 70)


def test_1_two_interleaved_sequences_of_300_tokens_decode_32_more_like_generate(
    reference: Any, session: Any, tiny_fp32: Artifact
) -> None:
    prompts = [_prompt(300, seed=2), _prompt(211, seed=3)]
    generated = []
    for prompt in prompts:
        with torch.no_grad():
            output = reference.generate(
                torch.tensor(prompt)[None],
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),  # else guessed from the padding's id
                max_new_tokens=32,
                min_new_tokens=32,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
        generated.append((output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).numpy()))
    decoders = [Decoder(tiny_fp32, session=session) for _ in prompts]
    last = [decoder.prefill(prompt, [97])[-1] for decoder, prompt in zip(decoders, prompts, strict=True)]
    for index in range(32):
        for which, decoder in enumerate(decoders):
            tokens, logits = generated[which]
            np.testing.assert_allclose(last[which], logits[index], atol=1e-3, rtol=0)
            assert int(last[which].argmax()) == tokens[index]
            last[which] = decoder.step([[tokens[index]]])[0, 0]


def test_2_padded_rows_of_transformers_equal_our_unpadded_ones(
    reference: Any, session: Any, tiny_fp32: Artifact
) -> None:
    short, long = _prompt(19, seed=4), _prompt(40, seed=5)
    padding = np.zeros(21, np.int64)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :21] = 0
    with torch.no_grad():
        batch = torch.tensor(np.stack([np.concatenate([padding, short]), long]))
        positions = torch.stack([torch.arange(40) - 21, torch.arange(40)]).clamp(min=0)
        left = reference(batch, attention_mask=mask, position_ids=positions).logits.numpy()
    for row, prompt in enumerate((short, long)):
        ours = Decoder(tiny_fp32, session=session).prefill(prompt, [16])
        np.testing.assert_allclose(ours, left[row, -len(prompt) :], atol=TOLERANCE, rtol=0)


def test_2_a_batch_of_rows_equals_each_row_alone(session: Any, tiny_fp32: Artifact) -> None:
    rows = np.stack([_prompt(24, seed=6), _prompt(24, seed=7), _prompt(24, seed=8)])
    together = Decoder(tiny_fp32, batch=3, session=session)
    logits = np.concatenate(
        [together.step(rows[:, :20])] + [together.step(rows[:, i : i + 1]) for i in range(20, 24)], 1
    )
    for row in range(3):
        alone = Decoder(tiny_fp32, session=session).prefill(rows[row], [20, 1])
        np.testing.assert_allclose(logits[row], alone, atol=1e-5, rtol=0)


def test_2_rows_of_different_lengths_decode_together_as_alone(session: Any, tiny_fp32: Artifact) -> None:
    prompts = [_prompt(5, seed=9), _prompt(31, seed=10)]
    alone = [Decoder(tiny_fp32, session=session) for _ in prompts]
    for decoder, prompt in zip(alone, prompts, strict=True):
        decoder.prefill(prompt, [16])
    together = Decoder(tiny_fp32, batch=2, session=session)
    together.lengths = np.array([5, 31])
    together.states = {name: np.concatenate([one.states[name] for one in alone]) for name in together.states}
    for token in (1, 2, 3):
        logits = together.step([[token], [token + 7]])
        for row, decoder in enumerate(alone):
            np.testing.assert_allclose(logits[row], decoder.step([[token + 7 * row]])[0], atol=1e-5, rtol=0)


def test_4_three_different_rotary_axes_equal_transformers(reference: Any, session: Any, tiny_fp32: Artifact) -> None:
    prompt = _prompt(40, seed=11)
    axes = np.stack([np.arange(40), np.arange(40) // 3 + 5, 60 - np.arange(40)])[:, None]
    with torch.no_grad():
        expected = reference(torch.tensor(prompt)[None], position_ids=torch.tensor(axes)).logits.numpy()
    logits = Decoder(tiny_fp32, session=session).step(prompt[None], position_ids=axes)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
    text = Decoder(tiny_fp32, session=session).step(prompt[None])
    assert np.abs(text - expected).max() > 100 * TOLERANCE, "the axes must matter for this test to mean anything"


def test_10_the_state_after_4096_tokens_has_not_drifted(reference: Any, session: Any, tiny_fp32: Artifact) -> None:
    prompt = _prompt(4096, seed=12)
    expected, cache = _reference_run(reference, prompt)
    decoder = Decoder(tiny_fp32, max_model_len=4096, session=session)
    for start in range(0, 4096, 512):
        logits = decoder.step(prompt[None, start : start + 512], logit_positions=[511])
    np.testing.assert_allclose(logits[0, 0], expected[-1], atol=1e-3, rtol=0)
    for layer, layer_type in enumerate(tiny_fp32.manifest.model.layer_types):
        if layer_type == "linear_attention":
            ours, theirs = decoder.state(layer, "recurrent_state"), cache.layers[layer].recurrent_states[0].numpy()
            assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


def test_10_a_sequence_resumed_from_copied_states_equals_one_that_never_stopped(
    session: Any, tiny_fp32: Artifact
) -> None:
    prompt = _prompt(90, seed=13)
    whole = Decoder(tiny_fp32, session=session).prefill(prompt, [90])
    first = Decoder(tiny_fp32, session=session)
    first.prefill(prompt[:50], [50])
    saved, length = {name: state.copy() for name, state in first.states.items()}, first.lengths.copy()
    first.prefill(prompt[::-1], [30])  # the original goes elsewhere, and must not touch what was saved
    resumed = Decoder(tiny_fp32, session=session)
    resumed.states, resumed.lengths = saved, length
    np.testing.assert_allclose(resumed.prefill(prompt[50:], [40]), whole[50:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_no_logits_are_computed_where_none_are_wanted(
    export_tiny: Callable[[ExportOptions], Artifact], target: str, weights: str
) -> None:
    artifact = export_tiny(ExportOptions(target=target, weights=weights, activations="float32"))
    session = onnxruntime_session(artifact)
    prompt = _prompt(30, seed=14)
    whole = Decoder(artifact, session=session).step(prompt[None])
    decoder = Decoder(artifact, session=session)
    assert decoder.step(prompt[None, :20], logit_positions=[]).shape == (1, 0, whole.shape[2])
    last = decoder.step(prompt[None, 20:], logit_positions=[3, 9])
    np.testing.assert_allclose(last[0], whole[0, [23, 29]], atol=1e-3, rtol=0)
