"""The folder that a training writes is a Qwen 3.5 checkpoint as on the hub; so is the trained one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3_5MoeForConditionalGeneration

from infra.miniature import vocabulary
from infra.miniature.checkpoint import TRAINED, WEIGHTS, read_checkpoint, write_checkpoint
from infra.miniature.configuration import configuration
from infra.miniature.model import Miniature, load_stored, stored_tensors
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from tests.checkpoints.config_json import Json
from tests.checkpoints.tensors import mtp_tensors, text_tensors, vision_tensors


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The miniature with random weights, as it is written today."""
    config = configuration(vocabulary.token_ids(tokenizer), vocabulary.VOCAB_SIZE)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("miniature")
    write_checkpoint(path, Miniature(config), config, tokenizer)
    return path


@pytest.fixture(scope="module", params=["untrained", "trained"])
def folder(request: pytest.FixtureRequest, untrained: Path) -> Path:
    """A folder that was written now, and the one in the repository."""
    return TRAINED if request.param == "trained" else untrained


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


def test_it_is_small_and_what_must_be_float32_is(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 24_000_000
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


def test_the_trained_one_has_the_files_that_are_written_today_and_their_contents(untrained: Path) -> None:
    """Vocabulary, configuration and template come from the scripts; only the weights come from a training."""
    names = sorted(path.name for path in untrained.iterdir())
    assert sorted(path.name for path in TRAINED.iterdir()) == names
    for name in names:
        if name != WEIGHTS:
            assert (TRAINED / name).read_bytes() == (untrained / name).read_bytes(), name


def test_a_model_is_read_back_as_it_was_up_to_bfloat16(
    rough_model: Miniature, probe_config: Json, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, rough_model, probe_config, tokenizer)
    read = dict(read_checkpoint(tmp_path).named_parameters())
    assert len(read) == len(list(rough_model.parameters()))
    for name, written in rough_model.named_parameters():
        kept = written if name.endswith(("linear_attn.A_log", "linear_attn.norm.weight")) else written.bfloat16()
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], kept.float()), name


def test_weights_of_another_model_are_refused(rough_model: Miniature, probe_config: Json) -> None:
    stored = {name: tensor.clone() for name, tensor in stored_tensors(rough_model)}
    expert = "mtp.layers.0.mlp.experts.3.up_proj.weight"
    model = Miniature(probe_config)
    for change in ({expert: stored[expert][:-1]}, {"mtp.norm.bias": stored[expert]}):
        with pytest.raises(ValueError, match=next(iter(change))):
            load_stored(model, {**stored, **change})
    del stored[expert]
    with pytest.raises(ValueError, match=expert):
        load_stored(model, stored)
