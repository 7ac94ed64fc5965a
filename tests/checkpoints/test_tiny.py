"""The checkpoints we make are what they claim to be: reproducible, and Qwen 3.5 as transformers reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
)

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from tests.checkpoints import SPECIAL_TOKENS, write_tiny
from tests.checkpoints.__main__ import main

CLASSES: Mapping[str, Any] = {
    "Qwen3_5MoeForConditionalGeneration": Qwen3_5MoeForConditionalGeneration,
    "Qwen3_5MoeForCausalLM": Qwen3_5MoeForCausalLM,
    "Qwen3_5ForConditionalGeneration": Qwen3_5ForConditionalGeneration,
    "Qwen3_5ForCausalLM": Qwen3_5ForCausalLM,
}


def load(folder: Path, architecture: str) -> Any:
    model, info = CLASSES[architecture].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.arange(40)[None] * 7).logits[0]
    return result


@pytest.mark.parametrize("architecture", CLASSES)
def test_transformers_loads_every_weight_and_finds_none_unexpected(tmp_path: Path, architecture: str) -> None:
    load(write_tiny(tmp_path, architecture=architecture), architecture)


@pytest.mark.parametrize("architecture", ["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"])
def test_variants_of_one_seed_are_the_same_model(tiny_checkpoint: Path, tmp_path: Path, architecture: str) -> None:
    variant = write_tiny(tmp_path, architecture=architecture, fused_experts=False, num_shards=3)
    expected = logits(load(tiny_checkpoint, "Qwen3_5MoeForConditionalGeneration"))
    torch.testing.assert_close(logits(load(variant, architecture)), expected, rtol=0, atol=1e-5)


def test_tied_embeddings_leave_out_the_output_projection(tmp_path: Path) -> None:
    architecture = "Qwen3_5ForCausalLM"
    folder = write_tiny(tmp_path, architecture=architecture, tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint.open(folder).names
    model = load(folder, architecture)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_mtp_head_is_ignored_by_transformers_and_has_one_tensor_an_expert(tmp_path: Path) -> None:
    architecture = "Qwen3_5MoeForConditionalGeneration"
    folder = write_tiny(tmp_path, mtp=True)
    load(folder, architecture)
    assert Checkpoint.open(folder).info("mtp.layers.0.mlp.experts.15.up_proj.weight").shape == (64, 128)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_checkpoint: Path, tmp_path: Path) -> None:
    same, other = write_tiny(tmp_path / "same"), write_tiny(tmp_path / "other", seed=1)
    for path in tiny_checkpoint.iterdir():
        assert path.read_bytes() == (same / path.name).read_bytes(), path.name
    differing = [path.name for path in other.iterdir() if path.read_bytes() != (same / path.name).read_bytes()]
    assert differing == ["model.safetensors"]


def test_about_two_million_parameters_are_stored_in_the_published_dtypes(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    infos = [checkpoint.info(name) for name in checkpoint.names]
    assert 1.5e6 < sum(math.prod(info.shape) for info in infos) < 2.5e6
    wide = {info.name.rpartition("linear_attn.")[2] for info in infos if info.dtype == "F32"}
    assert wide == {"A_log", "norm.weight"}
    assert {info.dtype for info in infos} == {"BF16", "F32"}


def test_logits_are_not_flat_and_tokens_that_do_not_exist_are_never_the_likeliest(tiny_checkpoint: Path) -> None:
    found = logits(load(tiny_checkpoint, "Qwen3_5MoeForConditionalGeneration"))
    assert found.std(-1).min() > 0.9
    assert found.argmax(-1).max() < Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json")).get_vocab_size()


def test_no_weight_has_its_default_value(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    for name in checkpoint.names:
        values = checkpoint.read(name).float()
        assert values.std() > 1e-3, name
        assert torch.unique(values).numel() > min(values.numel(), 60) // 2, name


def test_special_tokens_end_the_vocabulary_in_order_and_some_stay_in_text(tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(size - 33, size))
    kept = [t.content for t in tokenizer.get_added_tokens_decoder().values() if not t.special]
    assert {"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"} <= set(kept)
    assert "<|im_end|>" not in kept


def test_transformers_reads_the_tokenizer_as_it_is(tiny_checkpoint: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_checkpoint)
    ours = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    for text in ("Hello, world! 1234", "नमस्ते दुनिया", "e\u0301", "<|im_start|>user\n<think>\n", "🙂👍🏽", "  \n\n x"):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert theirs.eos_token == "<|im_end|>"


def test_the_command_line_writes_a_checkpoint_and_refuses_a_folder_in_use(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["tiny", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert json.loads((out / "config.json").read_text()) == json.loads((tiny_checkpoint / "config.json").read_text())
    with pytest.raises(SystemExit, match="2"):
        main(["tiny", str(out)])
    assert "not an empty folder" in capsys.readouterr().err
