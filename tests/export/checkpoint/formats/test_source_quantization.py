"""quantization_config: the official files are read, and fields that would change the meaning of numbers are refused."""

from __future__ import annotations

from typing import Any

import pytest

from qwonnx.export.checkpoint.formats.awq_config import AwqFormat
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.float8_config import Fp8Format
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat, GptqRule
from qwonnx.export.checkpoint.formats.source_quantization import SourceQuantization, parse_quantization
from qwonnx.export.errors import ConfigError

pytestmark = pytest.mark.fast

Json = dict[str, Any]

FP8: Json = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "weight_per_tensor": False,
    "act_per_tensor": False,
    "modules_to_not_convert": ["lm_head", "model.language_model.layers.0.mlp.gate"],
}
GPTQ: Json = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
    "true_sequential": True,
    "static_groups": False,
    "damp_percent": 0.01,
    "checkpoint_format": "gptq",
    "lm_head": False,
    "dynamic": {
        "lm_head": {},
        "model.language_model.embed_tokens": {},
        "-:.*attn.*": {},
        "-:.*shared_expert.*": {},
        "-:.*mtp.*": {},
        "-:.*visual.*": {},
    },
    "meta": {"quantizer": ["gptqmodel:5.7.0"]},
}
AUTO_ROUND: Json = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "iters": 200,
    "autoround_version": "0.12.2",
    "block_name_to_quantize": "model.language_model.layers",
    "extra_config": {
        "model.language_model.layers.0.linear_attn.in_proj_a": {"bits": 16, "data_type": "fp"},
        "model.language_model.layers.0.linear_attn.in_proj_qkv": {"bits": 8},
        ".*shared_expert_gate.*": {"bits": 16, "data_type": "float"},
    },
}
OFFICIAL_RULES = (
    GptqRule("lm_head", 4, 128),
    GptqRule("model.language_model.embed_tokens", 4, 128),
    *(GptqRule(f".*{part}.*", None, None) for part in ("attn", "shared_expert", "mtp", "visual")),
)
OFFICIAL_GPTQ = GptqFormat(bits=(4,), group_sizes=(128,), symmetric=True, may_permute=False, rules=OFFICIAL_RULES)


def parse(quantization: Any) -> SourceQuantization | None:
    return parse_quantization({"quantization_config": quantization}, {}, "config.json")


def refused(quantization: Any) -> str:
    """The message with which it is refused: one line, with the file, the field, a cause and a remedy."""
    with pytest.raises(ConfigError) as caught:
        parse(quantization)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json: quantization_config")
    assert any(remedy in message for remedy in ("export the checkpoint", "upgrade", "correct"))
    return message


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_auto_rounds_format_of_gptq_is_gptq(method: str) -> None:
    parsed = parse({**AUTO_ROUND, "quant_method": method})
    assert isinstance(parsed, GptqFormat)
    assert (parsed.bits, parsed.group_sizes, parsed.symmetric, parsed.may_permute) == ((4, 8), (128,), True, False)
    layer = "model.language_model.layers.0"
    assert parsed.foreseen_codes(f"{layer}.linear_attn.in_proj_a", 256) is None
    assert parsed.foreseen_codes(f"{layer}.mlp.shared_expert_gate", 256) is None
    assert parsed.foreseen_codes(f"{layer}.linear_attn.in_proj_qkv", 256) == StoredCodes(8, 128, has_zero_points=False)
    assert parsed.foreseen_codes(f"{layer}.linear_attn.in_proj_z", 256) == StoredCodes(4, 128, has_zero_points=False)
    alone = parse({name: value for name, value in AUTO_ROUND.items() if name != "extra_config"})
    assert isinstance(alone, GptqFormat)
    assert alone.bits == (4,)


def test_a_checkpoint_without_the_field_is_not_quantised() -> None:
    assert parse_quantization({}, {}, "config.json") is None
    assert parse_quantization({"quantization_config": None}, {"quantization_config": None}, "config.json") is None


def test_the_official_files_are_read_from_either_place() -> None:
    for given, expected in ((FP8, Fp8Format()), (GPTQ, OFFICIAL_GPTQ)):
        named = {"quantization_config": given}
        assert parse_quantization(named, {}, "config.json") == expected
        assert parse_quantization({}, named, "config.json") == expected
        assert parse_quantization(named, named, "config.json") == expected


def test_two_places_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantization_config differs"):
        parse_quantization({"quantization_config": FP8}, {"quantization_config": GPTQ}, "config.json")


def test_a_manifest_names_the_formats() -> None:
    assert Fp8Format().name == "float8_e4m3"
    assert OFFICIAL_GPTQ.name == "gptq-int4"


@pytest.mark.parametrize(("group_size", "expected"), [(32, 32), (64, 64), (128, 128), (-1, None)])
def test_groups_may_have_the_sizes_that_kernels_can_be_given(group_size: int, expected: int | None) -> None:
    found = parse({**GPTQ, "bits": 8, "group_size": group_size, "dynamic": None})
    assert found == GptqFormat((8,), (expected,), symmetric=True, may_permute=False)


def test_zero_points_are_read_unless_all_modules_are_said_to_be_symmetric() -> None:
    for changes in ({"sym": False}, {"sym": None}, {"dynamic": {"+:.*down.*": {"sym": False}}}):
        found = parse({**GPTQ, **changes})
        assert isinstance(found, GptqFormat)
        assert not found.symmetric


def test_rules_for_single_modules_widen_what_is_allowed() -> None:
    rules = {"+:.*down_proj": {"bits": 8, "group_size": 32}, ".*up_proj": {"desc_act": True}, "-:.*attn.*": {"bits": 3}}
    read = (GptqRule(".*down_proj", 8, 32), GptqRule(".*up_proj", 4, 128), GptqRule(".*attn.*", None, None))
    found = parse({**GPTQ, "dynamic": rules})
    assert found == GptqFormat((4, 8), (128, 32), symmetric=True, may_permute=True, rules=read)


def test_the_first_rule_that_matches_a_modules_name_from_its_start_says_what_codes_it_has() -> None:
    layer = "model.language_model.layers.0."
    for module, expected in (
        ("mlp.experts.0.up_proj", StoredCodes(4, 128, has_zero_points=False)),
        ("mlp.shared_expert.up_proj", None),
        ("linear_attn.out_proj", None),
    ):
        assert OFFICIAL_GPTQ.foreseen_codes(layer + module, 2048) == expected
    rules = {"up_proj": {"bits": 8}, r"+:.*\.down_proj$": {"group_size": -1}, "-:.*down.*": {}}
    found = parse({**GPTQ, "sym": False, "dynamic": rules})
    assert isinstance(found, GptqFormat)
    assert found.foreseen_codes(layer + "mlp.up_proj", 512) == StoredCodes(4, 128, has_zero_points=True)
    assert found.foreseen_codes(layer + "mlp.down_proj", 512) == StoredCodes(4, 512, has_zero_points=True)
    assert found.foreseen_codes(layer + "mlp.down_project", 512) is None


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", ".*.*.*.*", "(a|b)(a|b)(a|b)", "a{2}", "(?=a)b", "a*", "(a)*", "(a", ".+?b"]
)
def test_patterns_that_may_take_long_are_read_and_not_tried(pattern: str) -> None:
    found = parse({**GPTQ, "dynamic": {f"-:{pattern}": {}}})
    assert isinstance(found, GptqFormat)
    with pytest.raises(ConfigError, match="more than names"):
        found.foreseen_codes("model.layers.0.mlp.up_proj", 512)


def test_unknown_fields_that_are_off_change_nothing() -> None:
    assert parse({**GPTQ, "rotation": None, "adapter": {}}) == OFFICIAL_GPTQ
    assert parse({**FP8, "something": False}) == Fp8Format()


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq' is of HQQ, which packs codes in another order"),
        ({"quant_method": "qqq"}, "quant_method 'qqq'"),
        ({**AUTO_ROUND, "packing_format": "auto_round"}, "packing_format 'auto_round' of AutoRound"),
        ({**AUTO_ROUND, "packing_format": "auto_round:llm_compressor"}, "packing_format 'auto_round:llm_compressor'"),
        ({**AUTO_ROUND, "packing_format": "auto_round:auto_awq"}, "in_proj_qkv': bits 8 of awq"),
        ({**AUTO_ROUND, "packing_format": None}, "packing_format 'None' of AutoRound"),
        ({**AUTO_ROUND, "sym": False}, "AutoRound's codes are not symmetric (sym)"),
        ({**AUTO_ROUND, "data_type": "mx_fp"}, "AutoRound's codes are not integers (data_type)"),
        ({**AUTO_ROUND, "extra_config": {"x": {"bits": 8, "sym": False}}}, "not symmetric (sym)"),
        ({**AUTO_ROUND, "extra_config": {"x": {"bits": 2}}}, "bits 2 of gptq"),
        ({**AUTO_ROUND, "extra_config": ["x"]}, "extra_config is not an object of objects"),
        ({**AUTO_ROUND, "act_bits": 8}, "act_bits 8 of AutoRound"),
        ({**AUTO_ROUND, "bits": 3}, "bits 3 of gptq"),
        ({**AUTO_ROUND, "rotation": {"type": "hadamard"}}, "has the field 'rotation' of AutoRound"),
        ({"bits": 4}, "quant_method 'None'"),
        ([1], "not an object"),
        ({**FP8, "fmt": "e5m2"}, "fmt 'e5m2' of fp8"),
        ({**FP8, "activation_scheme": "static"}, "activation_scheme 'static' of fp8"),
        ({**FP8, "weight_block_size": [64, 128]}, "weight_block_size [64, 128] of fp8"),
        ({**FP8, "weight_block_size": None}, "weight_block_size None of fp8"),
        ({**FP8, "weight_per_tensor": True}, "weight_per_tensor 'True' of fp8"),
        ({**FP8, "weight_per_tensor": 0}, "weight_per_tensor '0' of fp8"),
        ({**FP8, "scale_fmt": "ue8m0"}, "scale_fmt 'ue8m0' of fp8"),
        ({**FP8, "kv_cache_scheme": {"type": "float"}}, "the field 'kv_cache_scheme' of fp8"),
        ({**GPTQ, "bits": 3}, "bits 3 of gptq"),
        ({**GPTQ, "bits": 4.0}, "bits 4.0 of gptq"),
        ({**GPTQ, "bits": None}, "no bits"),
        ({**GPTQ, "group_size": 48}, "group_size 48 of gptq"),
        ({**GPTQ, "group_size": None}, "no group_size"),
        ({**GPTQ, "sym": "yes"}, "sym is 'yes'"),
        ({**GPTQ, "desc_act": 1}, "desc_act is 1"),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, "checkpoint_format 'gptq_v2' of gptq"),
        ({**GPTQ, "pack_dtype": "int16"}, "pack_dtype 'int16' of gptq"),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format 'True' of gptq"),
        ({**GPTQ, "rotation": "hadamard"}, "the field 'rotation' of gptq"),
        ({**GPTQ, "dynamic": [1]}, "dynamic"),
        ({**GPTQ, "dynamic": {"a": 4}}, "dynamic"),
        ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 2}}}, "dynamic '+:.*down.*': bits 2 of gptq"),
        ({**GPTQ, "dynamic": {".*": {"rotation": "hadamard"}}}, "the field 'rotation' of gptq"),
    ],
)
def test_what_may_change_the_weights_is_refused(quantization: Any, named: str) -> None:
    assert named in refused(quantization)


AWQ: Json = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
AUTO_AWQ: Json = {**AUTO_ROUND, "packing_format": "auto_round:auto_awq", "extra_config": None}
NF4: Json = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": ["lm_head"],
    "llm_int8_threshold": 6.0,
}
INT8: Json = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["up_proj"]}
MODELOPT: Json = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "producer": {"name": "modelopt", "version": "0.41.0"},
    "ignore": ["lm_head", "model.language_model.layers.0.self_attn*"],
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
            "input_activations": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
        }
    },
}


@pytest.mark.parametrize(
    ("quantization", "name", "codes"),
    [
        (AWQ, "awq-int4", StoredCodes(4, 128, has_zero_points=True)),
        ({**AWQ, "group_size": -1, "zero_point": False, "version": "GEMM"}, "awq-int4", StoredCodes(4, 512, False)),
        ({**AWQ, "modules_to_not_convert": ["mlp"]}, "awq-int4", None),
        (AUTO_AWQ, "awq-int4", StoredCodes(4, 128, has_zero_points=False)),
        ({**AUTO_AWQ, "sym": False}, "awq-int4", StoredCodes(4, 128, has_zero_points=True)),
        ({**AUTO_AWQ, "extra_config": {"mlp.up_proj": {"bits": 16, "data_type": "fp"}}}, "awq-int4", None),
        (INT8, "bitsandbytes-8bit", None),
        ({**INT8, "llm_int8_skip_modules": None}, "bitsandbytes-8bit", StoredCodes(8, 512, has_zero_points=False)),
        (NF4, "bitsandbytes-4bit", None),
        ({"load_in_4bit": True}, "bitsandbytes-4bit", None),
        (MODELOPT, "modelopt-nvfp4", None),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt-fp8", None),
        ({**GPTQ, "desc_act": True}, "gptq-int4", None),
    ],
)
def test_other_quantisers_files_are_read(quantization: Json, name: str, codes: StoredCodes | None) -> None:
    parsed = parse(quantization)
    assert parsed is not None
    parsed.check_patterns()
    assert parsed.name == name
    assert parsed.foreseen_codes("model.layers.0.mlp.up_proj", 512) == codes
    assert codes is None or parsed.has_codes


def test_rules_of_single_modules_may_have_other_group_sizes_and_zero_points() -> None:
    rules = {"a.b": {"group_size": 32}, ".*down.*": {"bits": 16}, "c": {"sym": False, "bits": None}}
    parsed = parse({**AUTO_AWQ, "extra_config": rules})
    assert parsed == AwqFormat((128, 32), symmetric=False, excluded=("down",))


def test_a_mixture_of_algorithms_is_named() -> None:
    mixed = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    layers = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4", "group_size": 16}, "c": {"quant_algo": "FP8"}}
    parsed = parse({**mixed, "quantized_layers": layers})
    assert parsed is not None
    assert parsed.name == "modelopt-fp8+nvfp4"
    assert "quant_algo 'W4A8_AWQ'" in refused({**mixed, "quantized_layers": {"a": {"quant_algo": "W4A8_AWQ"}}})
    assert "quantized_layers" in refused(mixed)


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({**AWQ, "version": "gemv_fast"}, "version 'gemv_fast' of awq is not supported, only gemm is"),
        ({**AWQ, "bits": 8}, "bits 8 of awq"),
        ({**AWQ, "group_size": 48}, "group_size 48 of awq"),
        ({**AWQ, "zero_point": 1}, "zero_point is 1"),
        ({**AWQ, "rotation": "hadamard"}, "the field 'rotation' of awq"),
        ({**AUTO_AWQ, "bits": 8}, "bits 8 of awq"),
        ({**NF4, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type 'int4' of bitsandbytes"),
        ({**NF4, "load_in_8bit": True}, "must have one of load_in_4bit and load_in_8bit"),
        ({"quant_method": "bitsandbytes"}, "must have one of load_in_4bit and load_in_8bit"),
        ({**NF4, "rotation": 1}, "the field 'rotation' of bitsandbytes"),
        ({**MODELOPT, "quant_algo": "NVFP4_AWQ"}, "quant_algo 'NVFP4_AWQ' of ModelOpt"),
        ({**MODELOPT, "quant_algo": None}, "no quant_algo"),
        ({**MODELOPT, "pre_quant_scale": True}, "the field 'pre_quant_scale' of ModelOpt"),
        ({**MODELOPT, "group_size": 32}, "group_size '32' of ModelOpt"),
    ],
)
def test_other_quantisers_settings_that_change_weights_are_refused(quantization: Json, named: str) -> None:
    assert named in refused(quantization)
