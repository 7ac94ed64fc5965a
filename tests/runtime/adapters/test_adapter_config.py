"""adapter_config.json: what it says about ranks and scalings, and which adapters are refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qwonnx.runtime.adapters.adapter_config import parse_adapter_config, read_adapter_config
from qwonnx.runtime.errors import AdapterError

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


def test_a_config_of_peft_itself_is_read(tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], base_model_name_or_path="me/base").save_pretrained(
        str(tmp_path)
    )
    config = read_adapter_config(tmp_path)
    assert (config.base, config.rank, config.alpha, config.is_dora) == ("me/base", 4, 6.0, False)
    assert config.scaling_of("model.layers.0.self_attn.q_proj") == 1.5


def test_the_first_pattern_that_matches_a_name_or_its_end_decides() -> None:
    config = parse_adapter_config(
        LORA
        | {
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 4, "model.layers.3.mlp.*": 5},
            "alpha_pattern": {r"^model\.layers\.\d+\.self_attn\.(q|k)_proj": 1},
        }
    )
    assert config.rank_of("model.layers.1.self_attn.q_proj") == 2
    assert config.rank_of("model.layers.11.self_attn.q_proj") == 4
    assert config.rank_of("model.layers.3.mlp.gate_proj") == 5
    assert config.rank_of("model.layers.3.self_attn.k_proj") == 8
    assert config.scaling_of("model.layers.3.self_attn.k_proj") == 1 / 8
    assert config.scaling_of("model.layers.3.self_attn.v_proj") == 2


def test_a_rank_stabilised_scaling_has_the_root_of_the_rank() -> None:
    config = parse_adapter_config(LORA | {"use_rslora": True, "rank_pattern": {"q_proj": 4}})
    assert config.scaling_of("k_proj") == 16 / math.sqrt(8)
    assert config.scaling_of("q_proj") == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type is 'VERA', and only LORA is merged: merge it with peft"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
        ({"bias": "all"}, "bias is 'all', and Qwen 3.5 has no biases"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias adds biases"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is for layers that Qwen 3.5 does not have"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication repeats layers of the base"),
        ({"megatron_config": {"a": 1}}, "megatron_config is of Megatron's parallel layers"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices trains single rows of the embedding"),
        ({"alora_invocation_tokens": [1]}, "is of aLoRA, which changes only some tokens: no merged model is equal"),
        ({"use_qalora": True}, "use_qalora is of QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is of BD-LoRA"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config routes between adapters"),
        ({"kasa_config": {"a": 1}}, "kasa_config is of KaSA"),
        ({"monteclora_config": {"a": 1}}, "monteclora_config is of MonteCLoRA"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "is 'pissa_niter_4', which changes the base's weights",
        ),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "which changes the base's weights"),
        ({"init_lora_weights": "mica"}, "init_lora_weights is 'mica', which is unknown here"),
        ({"use_new_thing": True}, "has the field 'use_new_thing', which is unknown here and may change the weights"),
        ({"r": 0}, "r is 0 and must be an integer from 1 to 65536"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "16"}, "lora_alpha is '16' and must be a number"),
        ({"use_dora": 1}, "use_dora is 1 and must be true or false"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'] and must be an object"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern: q_proj is -1"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "the pattern '(a+)+b' of alpha_pattern is more than names, dots, numbers"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7 and must be a text"),
    ],
    ids=str,
)
def test_what_is_not_merged_is_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_adapter_config(LORA | fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value), "a message is a cause and a remedy"


@pytest.mark.parametrize("content", ["", "[]", '{"r": NaN}', '{"r": 1, "r": 2}'])
def test_a_malformed_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json is malformed"):
        read_adapter_config(tmp_path)


def test_fields_that_are_off_and_those_of_a_training_are_nothing(tmp_path: Path) -> None:
    fields = {
        "use_new_thing": False,
        "loftq_config": {},
        "_unsloth": 1,
        "velora_config": {"scale": 1},
        "init_lora_weights": "eva",
        "lora_dropout": 0.1,
    }
    assert parse_adapter_config(LORA | fields).rank == 8
