"""config.json: the fields that are read, and everything that is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qwonnx.export.checkpoint.config import ModelConfig, load_config, parse_config
from qwonnx.export.errors import ConfigError, UnsupportedModelError
from qwonnx.export.modeling.rotary import rope_frequencies
from tests.checkpoints import write_tiny

pytestmark = pytest.mark.fast

Json = dict[str, Any]

NATIVE = {
    "mrope_interleaved": True,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
    "rope_type": "default",
}
YARN = {**NATIVE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}


@pytest.fixture(scope="module")
def document(tiny_checkpoint: Path) -> Json:
    """config.json of the tiny checkpoint, parsed."""
    parsed: Json = json.loads((tiny_checkpoint / "config.json").read_text(encoding="utf-8"))
    return parsed


@pytest.fixture(scope="module")
def dense(document: Json) -> Json:
    """The same, for a dense text-only model: flat."""
    experts = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    text = {name: value for name, value in document["text_config"].items() if name not in experts}
    text.pop("router_aux_loss_coef")
    return {"architectures": ["Qwen3_5ForCausalLM"], **text, "model_type": "qwen3_5_text", "intermediate_size": 384}


def changed(document: Json, changes: Mapping[str, Any]) -> Json:
    """A copy of a nested config.json with fields of its text model set, or (by ...) removed."""
    result = copy.deepcopy(document)
    for name, value in changes.items():
        if value is ...:
            result["text_config"].pop(name)
        else:
            result["text_config"][name] = value
    return result


def refused(document: Json) -> str:
    """The message with which a config.json is refused: one line, with the file, a cause and a remedy."""
    with pytest.raises(ConfigError) as caught:
        parse_config(document, where="config.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json")
    assert ": " in message
    return message


def test_the_tiny_checkpoint_is_read_field_by_field(tiny_checkpoint: Path) -> None:
    config = load_config(tiny_checkpoint)
    assert config.architecture == "Qwen3_5MoeForConditionalGeneration"
    assert config.model_type == "qwen3_5_moe"
    assert config.layer_types == ("linear_attention",) * 3 + ("full_attention",)
    assert (config.head_dim, config.rotary_dim, config.mrope_section) == (32, 8, (2, 1, 1))
    assert (config.num_experts, config.num_experts_per_tok, config.intermediate_size) == (16, 4, 0)
    assert (config.linear_num_key_heads, config.linear_num_value_heads) == (2, 4)
    assert (config.rope.rope_type, config.rope_theta, config.max_position_embeddings) == ("default", 1e7, 262144)
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize("architecture", ["Qwen3_5MoeForCausalLM", "Qwen3_5ForCausalLM"])
def test_flat_and_nested_files_describe_the_same_model(tmp_path: Path, architecture: str) -> None:
    nested_name = architecture.replace("ForCausalLM", "ForConditionalGeneration")
    flat = load_config(write_tiny(tmp_path / "flat", architecture=architecture))
    nested = load_config(write_tiny(tmp_path / "nested", architecture=nested_name))
    named = {"architecture": "", "model_type": ""}
    assert _replaced(flat, named) == _replaced(nested, named)


def _replaced(config: ModelConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ModelConfig.__slots__} | dict(changes)


def test_a_dense_model_has_no_experts(dense: Json) -> None:
    config = parse_config(dense)
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (0, 0, 0)
    assert config.intermediate_size == 384


def test_a_file_saved_by_transformers_is_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    assert load_config(tmp_path) == load_config(tiny_checkpoint)


@pytest.mark.parametrize("interval", [None, 2, 4])
def test_layer_types_follow_from_the_interval_where_they_are_not_listed(document: Json, interval: int | None) -> None:
    config = parse_config(changed(document, {"layer_types": ..., "full_attention_interval": interval}))
    step = interval or 4
    kinds = ("linear_attention", "full_attention")
    assert config.layer_types == tuple(kinds[(layer + 1) % step == 0] for layer in range(4))


def test_a_swish_output_gate_is_what_the_model_always_had(document: Json) -> None:
    assert parse_config(changed(document, {"output_gate_type": "swish"})) == parse_config(document)


def test_unknown_fields_that_are_off_change_nothing(document: Json) -> None:
    off: Json = {"some_new_option": None, "another": False, "a_list": [], "mtp_something": 7, "_name_or_path": "x"}
    assert parse_config(changed(document, off)) == parse_config(document)


def test_fields_of_other_parts_of_the_model_are_not_looked_at(document: Json) -> None:
    assert parse_config({**document, "audio_config": {"a": 1}, "vision_config": 7}) == parse_config(document)


def test_tied_embeddings_are_taken_from_where_they_are_given(document: Json) -> None:
    outer = {name: value for name, value in document.items() if name != "tie_word_embeddings"}
    assert parse_config(changed(outer, {"tie_word_embeddings": True})).tie_word_embeddings
    tied_outside = {**changed(document, {"tie_word_embeddings": ...}), "tie_word_embeddings": True}
    assert parse_config(tied_outside).tie_word_embeddings


# Rotary embedding


def test_yarn_extends_the_context_by_its_factor(document: Json) -> None:
    config = parse_config(changed(document, {"rope_parameters": YARN}))
    rope = config.rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 262144)
    assert (rope.attention_factor, rope.beta_fast, rope.beta_slow, rope.truncate) == (None, 32.0, 1.0, True)
    assert config.max_position_embeddings == 4 * 262144


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_the_older_form_of_rope_parameters_says_the_same(document: Json, key: str) -> None:
    older = {name: value for name, value in YARN.items() if name not in ("rope_theta", "rope_type")}
    older.pop("partial_rotary_factor")
    moved = {
        "rope_parameters": ...,
        "rope_scaling": {**older, key: "yarn"},
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
    }
    assert parse_config(changed(document, moved)) == parse_config(changed(document, {"rope_parameters": YARN}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factor": 2.0},
        {"factor": 0.5},
        {"attention_factor": 1.25},
        {"beta_fast": 16, "beta_slow": 2},
        {"mscale": 0.7, "mscale_all_dim": 1.3},
        {"mscale": 0.7},
        {"truncate": False},
        {"original_max_position_embeddings": 32768},
        {"original_max_position_embeddings": None},
    ],
)
@pytest.mark.filterwarnings("ignore:.*rope.*")
def test_yarn_gives_the_frequencies_of_transformers(
    document: Json, options: Json, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {name: value for name, value in {**YARN, **options}.items() if value is not None}
    edited = changed(document, {"rope_parameters": rope})
    (tmp_path / "config.json").write_text(json.dumps(edited), encoding="utf-8")
    reference = AutoConfig.from_pretrained(tmp_path).text_config
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](reference, torch.device("cpu"))
    config = load_config(tmp_path)
    found, factor = rope_frequencies(config.rope, config.rotary_dim)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize(
    ("rope", "cause"),
    [
        ({"rope_type": "llama3"}, "rope_type 'llama3'"),
        ({"rope_type": "linear", "factor": 2.0}, "rope_type 'linear'"),
        ({"rope_type": 3}, "rope_type"),
        ({"factor": 4.0}, "factor needs rope_type yarn"),
        ({"mrope_interleaved": False}, "mrope_interleaved"),
        ({"mrope_interleaved": "yes"}, "mrope_interleaved"),
        ({"mrope_section": [2, 2, 1]}, "mrope_section"),
        ({"mrope_section": [0, 2, 2]}, "mrope_section"),
        ({"mrope_section": [2, 2]}, "mrope_section"),
        ({"mrope_section": [5, -1, 0]}, "mrope_section"),
        ({"mrope_section": "2,1,1"}, "mrope_section"),
        ({"partial_rotary_factor": 0.03}, "rotary dimensions"),
        ({"partial_rotary_factor": 0.3}, "rotary dimensions"),
        ({"partial_rotary_factor": 1.5}, "rotary dimensions"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_theta": None}, "no rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"short_factor": [1.0]}, "'short_factor'"),
        ({"rope_type": "yarn"}, "no factor"),
        ({"rope_type": "yarn", "factor": -1}, "factor"),
        ({"rope_type": "yarn", "factor": 1e9}, "factor"),
        ({"rope_type": "yarn", "factor": 4, "beta_fast": 1e300}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4, "truncate": 1}, "truncate"),
        (
            {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1.5},
            "original_max_position_embeddings",
        ),
    ],
)
def test_rope_parameters_that_change_the_maths_or_make_no_sense_are_refused(
    document: Json, rope: Json, cause: str
) -> None:
    assert cause in refused(changed(document, {"rope_parameters": {**NATIVE, **rope}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": [1]},
        {"rope_parameters": {"full_attention": NATIVE}},
        {"rope_scaling": YARN},
        {"rope_theta": 5000},
    ],
)
def test_rope_parameters_that_contradict_themselves_are_refused(document: Json, changes: Json) -> None:
    assert "rope" in refused(changed(document, changes))


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_bias", True),
        ("attention_bias", 0),
        ("attn_output_gate", False),
        ("attn_output_gate", 1),
        ("attn_output_gate", None),
        ("hidden_act", "gelu"),
        ("mamba_ssm_dtype", "bfloat16"),
        ("mlp_only_layers", [0]),
        ("norm_topk_prob", False),
        ("output_gate_type", "sigmoid"),
        ("quantization_config", {"quant_method": "hqq"}),
        ("sliding_window", 4096),
        ("final_logit_softcapping", 30.0),
    ],
)
def test_a_field_that_changes_the_maths_is_refused(document: Json, name: str, value: Any) -> None:
    assert name in refused(changed(document, {name: value}))


def test_an_unknown_quantisation_is_refused_wherever_it_is_named(document: Json) -> None:
    assert "not quantised" in refused({**document, "quantization_config": {"quant_method": "hqq"}})
    assert "MLX wrote it" in refused({**document, "quantization": {"group_size": 64, "bits": 4}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", ...),
        ("hidden_size", "128"),
        ("hidden_size", 128.0),
        ("hidden_size", True),
        ("hidden_size", 0),
        ("hidden_size", -128),
        ("vocab_size", 1 << 40),
        ("num_hidden_layers", 100_000),
        ("head_dim", None),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", "1e-6"),
        ("max_position_embeddings", ...),
        ("max_position_embeddings", 1),
        ("rms_norm_eps", 1e-300),
        ("rms_norm_eps", 1e300),
        ("layer_types", ["linear_attention"] * 3 + ["sliding_attention"]),
        ("layer_types", ["linear_attention"] * 3),
        ("layer_types", "full_attention"),
        ("layer_types", [["full_attention"]] * 4),
        ("num_key_value_heads", 3),
        ("linear_num_value_heads", 3),
        ("num_experts_per_tok", 17),
        ("num_experts", ...),
        ("num_experts", 0),
        ("linear_conv_kernel_dim", 1),
        ("tie_word_embeddings", "no"),
        ("tie_word_embeddings", True),  # the outer object says false
    ],
)
def test_a_field_of_the_wrong_type_or_size_is_refused(document: Json, name: str, value: Any) -> None:
    assert name in refused(changed(document, {name: value}))


def test_sizes_that_make_a_weight_beyond_all_bounds_are_refused(document: Json) -> None:
    huge = changed(document, {"moe_intermediate_size": 1 << 24, "num_experts": 1 << 24})
    assert "num_experts x moe_intermediate_size x hidden_size" in refused(huge)


def test_a_dense_architecture_with_experts_is_refused(dense: Json) -> None:
    assert "num_experts" in refused({**dense, "num_experts": 16})


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen3NextForCausalLM", "x\ny" * 99])
def test_an_unknown_architecture_is_refused_with_the_known_ones_named(document: Json, name: str) -> None:
    message = refused({**document, "architectures": [name]})
    assert "Qwen3_5MoeForConditionalGeneration" in message
    with pytest.raises(UnsupportedModelError):
        parse_config({**document, "architectures": [name]})


@pytest.mark.parametrize("value", ["Qwen3_5ForCausalLM", ["a", "b"], [7], {}])
def test_a_file_that_does_not_name_one_architecture_is_refused(document: Json, value: Any) -> None:
    assert "architectures" in refused({**document, "architectures": value})


def test_a_model_type_of_another_model_is_refused(document: Json) -> None:
    assert "model_type" in refused({**document, "model_type": "qwen3_vl"})
    assert "model_type" in refused(changed(document, {"model_type": "qwen4_exp_text"}))
    assert "model_type" in refused({**document, "model_type": ["qwen3_5_moe"]})


def test_a_text_config_that_is_not_an_object_is_refused(document: Json) -> None:
    assert "text_config" in refused({**document, "text_config": [1]})


@pytest.mark.parametrize("named", [None, [], ["Qwen3_5MoeForConditionalGeneration"], ["PeftModelForCausalLM"]])
@pytest.mark.parametrize("model_type", ["qwen3_5_moe_text", "qwen3_5_moe"])
def test_a_flat_file_is_a_text_model_whatever_class_it_names(document: Json, named: Any, model_type: str) -> None:
    nested = parse_config(document)
    flat = parse_config({**document["text_config"], "architectures": named, "model_type": model_type})
    assert flat.architecture == "Qwen3_5MoeForCausalLM"
    assert dataclasses.replace(flat, architecture=nested.architecture, model_type=nested.model_type) == nested


@pytest.mark.parametrize("named", [None, [], ["PeftModelForCausalLM"], ["OptimizedModule"]])
def test_model_type_stands_for_a_missing_architecture(document: Json, named: Any) -> None:
    assert parse_config({**document, "architectures": named}) == parse_config(document)
    unnamed = {name: value for name, value in document.items() if name != "model_type"}
    unnamed["text_config"] = {k: v for k, v in document["text_config"].items() if k != "model_type"}
    assert "names no architecture, and its model_type is None" in refused({**unnamed, "architectures": named})


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(data=st.data())
def test_any_value_in_any_field_gives_a_configuration_or_one_line(document: Json, data: st.DataObject) -> None:
    edited = copy.deepcopy(document)
    place = data.draw(st.sampled_from([edited, edited["text_config"], edited["text_config"]["rope_parameters"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(ANY_JSON)
    message = ""
    try:
        parse_config(edited)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_a_missing_file_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json: give a folder"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"a": 1, "a": 1}', b"{}" + b" " * (5 << 20)])
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is malformed") as caught:
        load_config(tmp_path)
    assert "\n" not in str(caught.value)
