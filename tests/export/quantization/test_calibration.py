"""Importance from a text: the moments are the full model's, and few tokens or odd texts do no harm."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import CalibrationError
from qwonnx.export.quantization.calibration import (
    MAX_TOKENS,
    calibrate,
    calibration_tokens,
    gather_moments,
    importance_of,
)
from qwonnx.export.quantization.importance import Importance
from qwonnx.runtime.artifact.folder import open_artifact
from tests.checkpoints.tiny import write_tiny

TEXT = (Path(__file__).parents[2] / "checkpoints" / "corpus.txt").read_text(encoding="utf-8")


def _hooked_moments(checkpoint: Path, sequences: Tensor) -> dict[str, Tensor]:
    """Mean squares of the inputs of every Linear and expert of transformers' whole model, by our names."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    inputs: defaultdict[str, list[Tensor]] = defaultdict(list)
    routed: dict[str, tuple[Any, tuple[Any, ...]]] = {}

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
    moments = gather_moments(checkpoint, WeightSource(Checkpoint.open(checkpoint), config), config, sequences)
    expected = _hooked_moments(checkpoint, sequences)
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert moments.squares.keys() == expected.keys()
    for name, mean in expected.items():
        counts = moments.counts[name]
        assert counts.sum() == 210 * (config.num_experts_per_tok if name.endswith("down_proj") and len(mean) > 1 else 1)
        found = moments.squares[name] / counts.clamp(min=1)[:, None]
        torch.testing.assert_close(found.float(), mean, rtol=2e-3, atol=1e-5)


def test_calibration_gives_positive_importance_of_mean_one_for_every_expert(tiny_checkpoint: Path) -> None:
    config, layers = load_config(tiny_checkpoint), []
    importance = calibrate(
        tiny_checkpoint,
        WeightSource(Checkpoint.open(tiny_checkpoint), config),
        config,
        TEXT,
        lambda done, total: layers.append((done, total)),
    )
    assert layers == [(1, 4), (2, 4), (3, 4), (4, 4)]
    down = importance.by_name["layers.1.mlp.experts.down_proj"]
    assert down.shape == (config.num_experts, config.moe_intermediate_size)
    for groups in importance.by_name.values():
        assert (groups > 0).all()
        torch.testing.assert_close(groups.float().mean(-1), torch.ones(len(groups)), rtol=0.05, atol=0)


def test_an_expert_that_no_token_chose_has_the_importance_of_all_others_together() -> None:
    squares, counts = torch.rand(3, 8, dtype=torch.float64), torch.tensor([10.0, 1000.0, 0.0], dtype=torch.float64)
    squares *= counts[:, None]
    found = importance_of(squares, counts).float()
    together, own = (squares.sum(0) / 1010) ** 0.75, (squares[1] / 1000) ** 0.75
    torch.testing.assert_close(found[2], (together / together.mean()).float(), rtol=0.01, atol=0)
    torch.testing.assert_close(found[1], (own / own.mean()).float(), rtol=0.05, atol=0)


def test_features_that_a_text_never_used_still_count_a_little() -> None:
    squares = torch.tensor([[0.0, 4.0, 4.0, 4.0]], dtype=torch.float64)
    assert 0 < importance_of(squares, torch.ones(1, dtype=torch.float64))[0, 0] < 0.05
    nothing = torch.zeros(1, 4, dtype=torch.float64)
    assert torch.equal(importance_of(nothing, torch.zeros(1, dtype=torch.float64)).float(), torch.ones(1, 4))


def test_rows_of_several_experts_get_each_its_own_importance() -> None:
    importance = Importance({"experts": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.bfloat16)})
    found = [(rows, vector.tolist()) for rows, vector in importance.of_rows("experts", 12, 3, 6) if vector is not None]
    assert found == [(slice(0, 1), [1.0, 2.0]), (slice(1, 5), [3.0, 4.0]), (slice(5, 6), [5.0, 6.0])]
    assert list(importance.of_rows("another", 12, 3, 6)) == [(slice(0, 6), None)]


def test_an_export_with_calibration_differs_where_weights_are_quantised_and_only_in_scales_and_codes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain = export_checkpoint(tiny_checkpoint, tmp_path / "plain", ExportOptions())
    stages: set[str] = set()
    weighted = export_checkpoint(
        tiny_checkpoint,
        tmp_path / "weighted",
        ExportOptions(calibration=TEXT),
        on_progress=lambda progress: stages.add(progress.stage),
    )
    assert "calibrate" in stages
    assert [(entry.path, entry.size) for entry in plain.files] == [(entry.path, entry.size) for entry in weighted.files]
    changed = {one.path for one, other in zip(plain.files, weighted.files, strict=True) if one.sha256 != other.sha256}
    assert changed
    assert all(path.startswith("weights-") for path in changed)
    open_artifact(tmp_path / "weighted", verify=True)


def test_a_text_of_a_few_words_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(CalibrationError, match="tokens: give at least 64"):
        calibrate(
            tiny_checkpoint,
            WeightSource(Checkpoint.open(tiny_checkpoint), load_config(tiny_checkpoint)),
            load_config(tiny_checkpoint),
            "a few words",
            lambda done, total: None,
        )


def test_a_long_text_is_cut(tiny_checkpoint: Path) -> None:
    sequences = calibration_tokens(tiny_checkpoint, TEXT * 50)
    assert sequences.shape == (8, 512)
    assert sequences.numel() == MAX_TOKENS
    assert calibration_tokens(tiny_checkpoint, TEXT[:800]).shape[0] == 1


def test_settings_of_a_training_run_do_not_shorten_the_text(tmp_path: Path) -> None:
    """A tokenizer.json may have a `truncation`: with it, a calibration would learn only from the first tokens."""
    checkpoint = write_tiny(tmp_path)
    path = checkpoint / "tokenizer.json"
    whole = calibration_tokens(checkpoint, TEXT)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["truncation"] = {"direction": "Right", "max_length": 100, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 5000},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    assert whole.numel() > 1000
    assert torch.equal(calibration_tokens(checkpoint, TEXT), whole)
