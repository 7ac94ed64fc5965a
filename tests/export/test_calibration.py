"""Importance from a text: the moments are the full model's, and few tokens or odd texts do no harm."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qwonnx.export.calibration import MAX_TOKENS, Importance, calibrate, gather_moments, read_text
from qwonnx.export.checkpoint import Checkpoint
from qwonnx.export.config import load_config
from qwonnx.export.errors import CalibrationError
from tests.checkpoints.tiny import write_tiny

TEXT = (Path(__file__).parents[1] / "checkpoints" / "corpus.txt").read_text(encoding="utf-8")


def _hooked_moments(checkpoint: Path, sequences: Tensor) -> dict[str, Tensor]:
    """Mean squares of the inputs of every Linear and expert of transformers' whole model, by our names."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    inputs: defaultdict[str, list[Tensor]] = defaultdict(list)
    routed: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}

    def ours(name: str) -> str:
        return name.removeprefix("model.").removeprefix("language_model.")

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda module, args, out, name=name: inputs[f"{ours(name)}.weight"].append(args[0])
            )
        elif name.endswith("mlp.experts"):
            module.register_forward_hook(
                lambda module, args, out, name=name: routed.__setitem__(ours(name), (module, args))
            )
    with torch.no_grad():
        model(input_ids=sequences, use_cache=False)
    moments = {
        name: torch.cat([x.reshape(-1, x.shape[-1]) for x in found]).square().mean(0)[None]
        for name, found in inputs.items()
    }
    for name, (module, (x, chosen, _)) in routed.items():
        moments[f"{name}.gate_up_proj"] = x.square().mean(0)[None]
        rows = []
        for expert, weight in enumerate(module.gate_up_proj):
            gate, up = (x[(chosen == expert).any(-1)] @ weight.T).chunk(2, -1)
            inner = nn.functional.silu(gate) * up
            rows.append(inner.square().mean(0) if len(inner) else torch.zeros(inner.shape[1]))
        moments[f"{name}.down_proj"] = torch.stack(rows)
    return moments


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"fused_experts": False, "dtype": "F32"},
        {"architecture": "Qwen3_5MoeForCausalLM"},
        {"architecture": "Qwen3_5ForConditionalGeneration", "tie_word_embeddings": True},
    ],
    ids=["fused", "one tensor an expert", "flat names", "dense and tied"],
)
def test_moments_are_those_that_hooks_on_the_whole_model_see(tmp_path: Path, variant: dict[str, Any]) -> None:
    checkpoint = write_tiny(tmp_path, **variant)
    config = load_config(checkpoint)
    sequences = torch.randint(0, config.vocab_size, (3, 70), generator=torch.Generator().manual_seed(0))
    moments = gather_moments(checkpoint, Checkpoint.open(checkpoint), config, sequences)
    expected = _hooked_moments(checkpoint, sequences)
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert moments.squares.keys() == expected.keys()
    for name, mean in expected.items():
        counts = moments.counts[name]
        assert counts.sum() == 210 * (config.num_experts_per_tok if name.endswith("down_proj") and len(mean) > 1 else 1)
        found = moments.squares[name] / counts.clamp(min=1)[:, None]
        torch.testing.assert_close(found.float(), mean, rtol=2e-3, atol=1e-5)
