"""The trained model equals transformers' Qwen 3.5, forward and backward; its head follows its description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen3_5MoeForConditionalGeneration

from infra.miniature import glossary, pictures
from infra.miniature.checkpoint import write_checkpoint
from infra.miniature.conversation import Encoded
from infra.miniature.delta_rule import gated_delta_rule
from infra.miniature.experts import routed_experts
from infra.miniature.fused import cross_entropy, rms_norm
from infra.miniature.mixture import Mixture
from infra.miniature.model import Miniature, stored_tensors
from infra.miniature.vision import patches
from tests.checkpoints.config_json import Json

pytestmark = pytest.mark.fast


def examples(mixture: Mixture) -> list[Encoded]:
    """Two pictures, a list of facts and a single one; together they need several chunks."""
    random = np.random.default_rng(0)
    facts = glossary.facts()
    return [
        mixture.encoder.encode(example)
        for example in (
            pictures.training_example(random),
            glossary.training_example(facts[:11], random),
            pictures.training_example(random),
            glossary.training_example(facts[7:8], random),
        )
    ]


@pytest.fixture
def reference(rough_model: Miniature, probe_config: Json, tokenizer: Tokenizer, tmp_path: Path) -> Any:
    """transformers' model with the weights of rough_model, unrounded."""
    write_checkpoint(tmp_path, rough_model, probe_config, tokenizer)
    model = Qwen3_5MoeForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    weights = {name: tensor for name, tensor in stored_tensors(rough_model) if not name.startswith("mtp.")}
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model


def frames(picture: np.ndarray) -> np.ndarray:
    """Patches as transformers takes them: [h * w, (channel, frame, row, column)], both frames the same."""
    return np.repeat(patches(picture).reshape(-1, 3, 1, 256), 2, axis=2).reshape(-1, 1536)


def run(reference: Any, example: Encoded) -> torch.Tensor:
    ids = torch.from_numpy(example.ids.astype(np.int64))[None]
    inputs: dict[str, torch.Tensor] = {}
    if example.pictures:
        grids = [[1, picture.shape[0] // 16, picture.shape[1] // 16] for picture in example.pictures]
        inputs = {
            "pixel_values": torch.from_numpy(np.concatenate([frames(picture) for picture in example.pictures])),
            "image_grid_thw": torch.tensor(grids),
            "mm_token_type_ids": (ids == reference.config.image_token_id).long(),
        }
    logits: torch.Tensor = reference(input_ids=ids, **inputs).logits[0]
    return logits


def test_packed_examples_have_the_logits_of_transformers(
    mixture: Mixture, rough_model: Miniature, reference: Any
) -> None:
    packed = examples(mixture)
    with torch.no_grad():
        logits, _ = rough_model.logits(mixture.pack([packed], 512))
        start = 0
        for example in packed:
            expected = run(reference, example)
            assert expected.std() > 0.1
            end = start + len(example.ids)
            torch.testing.assert_close(logits[0, start:end], expected, rtol=0, atol=1e-4)
            start = end


def test_gradients_are_those_of_transformers(mixture: Mixture, rough_model: Miniature, reference: Any) -> None:
    packed = examples(mixture)[:2]
    losses = rough_model(mixture.pack([packed], 256), mtp=False)
    losses.main.backward()
    expected, count = torch.zeros(()), 0
    for example in packed:
        learnt = torch.from_numpy(example.learnt)
        ids = torch.from_numpy(example.ids.astype(np.int64))
        logits = run(reference, example)
        expected = expected + torch.nn.functional.cross_entropy(
            logits[:-1][learnt[1:]], ids[1:][learnt[1:]], reduction="sum"
        )
        count += int(learnt.sum())
    (expected / count).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.main, expected / count, rtol=1e-5, atol=1e-5)
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in rough_model.named_parameters():
        if name.startswith("mtp."):
            continue
        assert parameter.grad is not None, name
        scale = theirs[name].abs().max().clamp(min=1e-6)
        torch.testing.assert_close(parameter.grad / scale, theirs[name] / scale, rtol=0, atol=1e-3, msg=name)


def test_the_heads_prediction_depends_on_its_own_example_alone(mixture: Mixture, rough_model: Miniature) -> None:
    packed = examples(mixture)
    with torch.no_grad():
        _, together = rough_model.logits(mixture.pack([packed], 512))
        start = 0
        for example in packed:
            _, alone = rough_model.logits(mixture.pack([[example]], 256))
            size = len(example.ids)
            # The last position has no next token.
            torch.testing.assert_close(together[0, start : start + size - 1], alone[0, : size - 1], rtol=0, atol=1e-4)
            start += size


def test_the_heads_loss_is_of_the_token_after_the_next(mixture: Mixture, rough_model: Miniature) -> None:
    example = examples(mixture)[3]
    batch = mixture.pack([[example]], 64)
    with torch.no_grad():
        losses = rough_model(batch)
        _, logits = rough_model.logits(batch)
    targets = np.flatnonzero(example.learnt)
    expected = torch.nn.functional.cross_entropy(
        logits[0, targets - 2], torch.from_numpy(example.ids[targets].astype(np.int64))
    )
    torch.testing.assert_close(losses.mtp, expected)


def test_the_chunked_rule_is_the_recurrence() -> None:
    torch.manual_seed(0)
    shape = (2, 128, 3)
    query, key, value = (torch.randn(*shape, 8) for _ in range(3))
    key = torch.nn.functional.normalize(key, dim=-1)
    decay, beta = -(torch.rand(shape) ** 3), torch.rand(shape)
    starts = torch.zeros(shape[:2], dtype=torch.bool)
    starts[0, [0, 31, 32, 90]] = True
    starts[1, 0] = True
    found = gated_delta_rule(query, key, value, decay, beta, starts)
    state = torch.zeros(2, 3, 8, 8)
    for step in range(shape[1]):
        state = state * decay[:, step].exp()[..., None, None] * ~starts[:, step, None, None, None]
        at = key[:, step].unsqueeze(-1)
        change = (value[:, step] - (state * at).sum(-2)) * beta[:, step].unsqueeze(-1)
        state = state + at * change.unsqueeze(-2)
        expected = (state * query[:, step].unsqueeze(-1)).sum(-2)
        torch.testing.assert_close(found[:, step], expected, rtol=1e-4, atol=1e-4)


def test_the_norms_and_the_losses_own_gradients_are_autograds() -> None:
    torch.manual_seed(0)
    x, weight, table = (torch.randn(shape, dtype=torch.double) for shape in ((7, 12), (12,), (30, 12)))
    targets = torch.randint(30, (7,))

    def ours(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return cross_entropy(rms_norm(x, weight), table, targets)

    def plain(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        normal = torch.nn.functional.rms_norm(x, (12,), weight, 1e-6)
        return torch.nn.functional.cross_entropy(normal @ table.t(), targets)

    inputs = [tensor.requires_grad_() for tensor in (x, weight, table)]
    found, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_experts_and_their_gradients_are_the_plain_sum() -> None:
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(40, 12), torch.randn(5, 16, 12), torch.randn(5, 12, 8)
    weights, index = torch.rand(40, 3), torch.rand(40, 5).topk(3).indices
    index[index == 2] = 3  # one has nothing to do, and one may come twice
    inputs = [tensor.double().requires_grad_() for tensor in (x, gate_up, down, weights)]

    def plain(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gate, up = torch.einsum("nh,nkih->nki", x, gate_up[index]).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        return torch.einsum("nki,nkhi,nk->nh", inner, down[index], weights)

    found = routed_experts(inputs[0], inputs[1], inputs[2], inputs[3], index)
    expected = plain(*inputs)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, pull), torch.autograd.grad(expected, inputs, pull), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
