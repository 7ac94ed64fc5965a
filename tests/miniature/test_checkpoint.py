"""The folder that a training writes is a Qwen 3.5 checkpoint as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3_5MoeForConditionalGeneration

from qwonnx.export.checkpoint import Checkpoint
from tests.checkpoints.tensors import mtp_tensors, text_tensors, vision_tensors
from tests.miniature import vocabulary
from tests.miniature.checkpoint import write_checkpoint
from tests.miniature.configuration import configuration
from tests.miniature.model import Miniature


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The miniature, untrained."""
    config = configuration(vocabulary.token_ids(tokenizer), vocabulary.VOCAB_SIZE)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("miniature")
    write_checkpoint(path, Miniature(config), config, tokenizer)
    return path


def test_transformers_loads_every_weight_and_finds_none_unexpected(folder: Path) -> None:
    model, info = Qwen3_5MoeForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_names_and_shapes_are_those_of_the_hub(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    expected = {plan.name: plan.shape for plan in text_tensors(text, prefix="model.language_model.")}
    expected |= {plan.name: plan.shape for plan in vision_tensors(vision)}
    for plan in mtp_tensors(text):
        prefix, _, kind = plan.name.rpartition(".")
        if not prefix.endswith(".experts"):
            expected[plan.name] = plan.shape
            continue
        experts, rows, columns = plan.shape  # Qwen 3.5 has a tensor for each expert of its head
        parts = {"gate_proj": rows // 2, "up_proj": rows // 2} if kind == "gate_up_proj" else {"down_proj": rows}
        for index in range(experts):
            expected |= {f"{prefix}.{index}.{part}.weight": (size, columns) for part, size in parts.items()}
    checkpoint = Checkpoint.open(folder)
    assert {name: tuple(checkpoint.info(name).shape) for name in checkpoint.names} == expected


def test_the_weights_fit_and_what_must_be_float32_is(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size <= 24_000_000
    checkpoint = Checkpoint.open(folder)
    wide = {name for name in checkpoint.names if checkpoint.info(name).dtype == "F32"}
    assert {name.rpartition("linear_attn.")[2] for name in wide} == {"A_log", "norm.weight"}


def test_the_architecture_is_the_whole_one(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert text["layer_types"] == (["linear_attention"] * 3 + ["full_attention"]) * 2
    assert (text["num_experts"], text["num_experts_per_tok"], text["mtp_num_hidden_layers"]) == (32, 4, 1)
    assert text["shared_expert_intermediate_size"] > 0
    assert text["rope_parameters"]["mrope_interleaved"] is True


def test_transformers_reads_the_tokenizer_and_generation_is_greedy(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("What is Germany called in Swahili?", "<|im_start|>user\n<think>\n", "日本語 ภาษาไทย"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.eos_token == "<|im_end|>"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert generation["eos_token_id"][0] == tokenizer.token_to_id("<|im_end|>")
