"""The checkpoint, layer by layer and expert by expert, is transformers' whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.errors import VerificationError
from qwonnx.export.evaluation.reference_model import load_reference_model, quiet_transformers
from qwonnx.export.evaluation.verify import run_reference
from qwonnx.export.quantization.calibration_layers import layer_classes
from qwonnx.export.verification.reference_layers import ReferenceLayers, StreamedExperts
from qwonnx.export.verification.token_budget import affordable_tokens
from tests.checkpoints import write_tiny

TOKENS = np.arange(3, 60)
TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}


def opened(checkpoint: Path, memory_bytes: int = 64_000_000) -> ReferenceLayers:
    found = resolve_checkpoint(str(checkpoint), None)
    weights = StoredWeights(found.tensors, found.config.quantization)
    return ReferenceLayers(found.folder, found.config, weights, memory_bytes)


def logits(layers: ReferenceLayers, rows_at_once: int = 100) -> torch.Tensor:
    with quiet_transformers():
        hidden = layers.embed(TOKENS.tolist())[None]
        for index in range(layers.num_layers):
            hidden = layers.run(index, hidden).hidden
        normed = layers.final_norm(hidden)
    return torch.cat([normed[0] @ head.T for _, head in layers.head_slices(rows_at_once)], -1)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"fused_experts": False},
        {"architecture": "Qwen3_5ForCausalLM"},
        {"architecture": "Qwen3_5ForCausalLM", "text_overrides": {**TWO_LAYERS, "tie_word_embeddings": True}},
    ],
    ids=["experts", "experts in tensors of their own", "dense", "tied"],
)
def test_logits_are_those_of_the_whole_model(tmp_path: Path, variant: dict[str, Any]) -> None:
    folder = write_tiny(tmp_path / "tiny", **{"text_overrides": TWO_LAYERS, **variant})
    whole = run_reference(folder, TOKENS)
    torch.testing.assert_close(logits(opened(folder)), torch.from_numpy(whole.logits), rtol=0, atol=1e-5)


def test_slices_of_any_size_give_the_same_layers(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", text_overrides=TWO_LAYERS)
    few, many = opened(folder, 1), opened(folder, 1 << 30)
    torch.testing.assert_close(logits(few, 7), logits(many, 10_000), rtol=0, atol=1e-5)


def test_experts_one_by_one_are_transformers_module_of_all(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", text_overrides=TWO_LAYERS)
    layers, config = opened(folder), resolve_checkpoint(str(folder), None).config
    with quiet_transformers(), torch.no_grad():
        mine: Any = layers._load(0).mlp.experts
        whole = load_reference_model(folder).model.layers[0].mlp.experts
        assert isinstance(mine, StreamedExperts)
        random = torch.Generator().manual_seed(0)
        x = torch.randn((50, config.hidden_size), generator=random)
        scores = torch.randn((50, config.num_experts), generator=random)
        weights, chosen = scores.softmax(-1).topk(config.num_experts_per_tok)
        torch.testing.assert_close(mine(x, chosen, weights), whole(x, chosen, weights), rtol=0, atol=1e-6)
    assert mine.used.sum() == len(torch.unique(chosen))
    assert layer_classes(config)[0].__name__ == "Qwen3_5MoeDecoderLayer"


def test_little_memory_means_fewer_tokens_and_too_little_is_refused(tmp_path: Path) -> None:
    config = resolve_checkpoint(str(write_tiny(tmp_path / "tiny")), None).config
    assert affordable_tokens(1 << 30, config, 1024) == 1024
    assert 32 <= affordable_tokens(12_000_000, config, 1024) < 1024
    with pytest.raises(VerificationError, match="too little for a layer of this model: allow at least"):
        affordable_tokens(100_000, config, 1024)
