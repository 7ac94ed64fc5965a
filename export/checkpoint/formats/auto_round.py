"""AutoRound's quantization_config, read as GPTQ's or AWQ's where its tensors are theirs.

For symmetric codes in the packing format auto_round:auto_gptq, AutoRound writes qweight, qzeros and scales as GPTQ
does, zero points minus one. Asymmetric codes in this format are refused: AutoRound itself overflows where a zero point
is 0. In auto_round:auto_awq it writes 4 bits as AWQ does for gemm, symmetric or not. Its other formats store zero
points as they are, or pack codes in another order.

extra_config has settings of single modules: bits (16: not quantised), group_size and sym.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.awq_config import BITS, AwqFormat
from qwonnx.export.checkpoint.formats.format_fields import GROUP_SIZES, UNQUANTIZED, choice
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat, parse_gptq
from qwonnx.export.errors import ConfigError
from qwonnx.runtime.artifact.object_fields import CORRECT, is_off

METHODS = ("auto-round", "auto_round", "intel/auto-round")
_GPTQ, _AWQ = ("auto_round:auto_gptq", "auto_round:gptq"), ("auto_round:auto_awq", "auto_round:awq")
_FLOAT_BITS = 16  # from here on a rule of extra_config means that a module is not quantised
_INTEGERS = ("int", "int_sym", None)

# What the quantiser did, and hints for loaders: they do not change what the stored numbers mean.
_IGNORED = frozenset(
    {
        "act_bits",  # checked
        "act_data_type",
        "act_dynamic",
        "act_group_size",
        "act_sym",
        "amp",
        "autoround_version",
        "backend",
        "batch_size",
        "block_name_to_quantize",
        "dataset",
        "enable_alg_ext",
        "enable_minmax_tuning",
        "enable_norm_bias_tuning",
        "enable_quanted_input",
        "gradient_accumulate_steps",
        "ignore_layers",
        "iters",
        "low_gpu_mem_usage",
        "lr",
        "minmax_lr",
        "model_dtype",
        "nsamples",
        "quant_block_list",
        "quant_nontext_module",
        "scale_dtype",
        "seqlen",
        "supported_types",
        "to_quant_block_names",
    }
)
_READ = frozenset({"bits", "data_type", "extra_config", "group_size", "packing_format", "quant_method", "sym"})


def parse_auto_round(fields: Fields) -> GptqFormat | AwqFormat:
    """The format of a quantization_config of AutoRound.

    Raises:
        ConfigError: another packing format, codes that it does not store, quantised activations, or an unknown field.
    """
    values, where = fields.values, fields.where
    packing = values.get("packing_format")
    if packing not in (*_GPTQ, *_AWQ):
        raise ConfigError(
            f"{where}: packing_format {str(packing)[:60]!r} of AutoRound is not supported, only {_GPTQ[0]} and"
            f" {_AWQ[0]} are: {UNQUANTIZED}"
        )
    unknown = sorted(name for name in values.keys() - _READ - _IGNORED if not is_off(values[name]))
    if unknown:
        raise ConfigError(
            f"{where} has the field {unknown[0][:60]!r} of AutoRound, which is unknown here and may change the weights:"
            " upgrade qwonnx, or remove it if it does not matter"
        )
    if values.get("act_bits") not in (None, 16, 32):
        raise ConfigError(
            f"{where}: act_bits {str(values['act_bits'])[:60]} of AutoRound is not supported: {UNQUANTIZED}"
        )
    rules = values.get("extra_config")
    if is_off(rules):
        rules = {}
    if not isinstance(rules, dict) or any(not isinstance(rule, dict) for rule in rules.values()):
        raise ConfigError(f"{where}: extra_config is not an object of objects: {CORRECT}")
    quantized = {name: rule for name, rule in rules.items() if not _is_float(rule)}
    described = (values, *quantized.values())
    if any(one.get("data_type") not in _INTEGERS for one in described):
        raise ConfigError(f"{where}: AutoRound's codes are not integers (data_type): {UNQUANTIZED}")
    if packing in _AWQ:
        return _awq(fields, rules, quantized)
    if any(one.get("sym", True) is not True for one in described):
        raise ConfigError(f"{where}: AutoRound's codes are not symmetric (sym), which {_GPTQ[0]} breaks: {UNQUANTIZED}")
    dynamic: dict[str, dict[str, Any]] = {f"-:{_pattern(name)}": {} for name in rules if name not in quantized}
    for name, rule in quantized.items():
        dynamic[f"+:{_pattern(name)}"] = {key: rule[key] for key in ("bits", "group_size") if rule.get(key) is not None}
    settings = {key: values[key] for key in ("bits", "group_size") if key in values}
    as_gptq = {**settings, "quant_method": "gptq", "sym": True, "desc_act": False, "dynamic": dynamic}
    return parse_gptq(Fields(as_gptq, where))


def _awq(fields: Fields, rules: Mapping[str, Any], quantized: Mapping[str, Any]) -> AwqFormat:
    described = [fields]
    for name, rule in quantized.items():
        given = {key: value for key, value in rule.items() if value is not None}
        described.append(Fields({**fields.values, **given}, f"{fields.where}: extra_config {name[:60]!r}"))
    sizes = []
    for one in described:
        choice(one, "awq", "bits", (BITS,))
        size = choice(one, "awq", "group_size", GROUP_SIZES)
        sizes.append(None if size == -1 else size)
    # Reading zero points is always right: if one module is not symmetric, those of all modules are read.
    symmetric = all(one.flag("sym", default=True) for one in described)
    floats = tuple(_part(name) for name in rules if name not in quantized)
    return AwqFormat(tuple(dict.fromkeys(sizes)), symmetric, floats)


def _part(name: str) -> str:
    """The part of a module's name that a name or a pattern of extra_config stands for."""
    return name.replace(r"\.", ".").removeprefix(".*").removesuffix(".*")


def _is_float(rule: Mapping[str, Any]) -> bool:
    bits = rule.get("bits")
    return isinstance(bits, int) and bits >= _FLOAT_BITS


def _pattern(module: str) -> str:
    """A pattern of GPTQ's `dynamic` for a module; AutoRound also takes patterns, which stay."""
    return module.replace(".", r"\.") + "$" if re.fullmatch(r"[\w.-]+", module) else module
