"""config.json's `quantization_config`: how a checkpoint's quantised tensors are stored.

    quant_method "fp8"     X.weight in F8_E4M3, X.weight_scale_inv with one scale for each block of 128 x 128 values
    quant_method "gptq"    X.qweight, X.qzeros, X.scales and optionally X.g_idx replace X.weight, 4 or 8 bits
    "auto-round"           the same, if it says so (auto_round.py)

This module reads the fields that say what the stored numbers mean. It refuses an unknown field that could change this,
as everywhere in config.json. stored_weights.py recognises quantised tensors by their companion tensors, because tools
disagree about lists of exclusions. A plan has no tensors, so it relies on GPTQ's rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.checkpoint.config_fields import CORRECT, Fields, is_off
from qwonnx.export.checkpoint.formats.auto_round import METHODS, as_gptq
from qwonnx.export.errors import ConfigError

FP8_BLOCK = 128  # rows and columns of a block that shares a scale

_NAME = "quantization_config"
_UNQUANTIZED = "export the checkpoint that is not quantised"
_DEQUANTIZE = f"{_UNQUANTIZED}, or load it with transformers, call dequantize(), save it and export that folder"

# Methods that people use for this model, by quant_method: their name, and what is different.
_FOREIGN = {
    "awq": ("AWQ", "packs codes in another order"),
    "bitsandbytes": ("bitsandbytes", "stores codes of its own types"),
    "compressed-tensors": ("compressed-tensors", "has formats of its own"),
    "modelopt": ("ModelOpt", "stores NVFP4 or FP8 with scales of its own"),
    "modelopt_fp4": ("ModelOpt", "stores NVFP4 with scales of its own"),
    "fbgemm_fp8": ("FBGEMM", "stores FP8 with a scale for each row"),
    "mxfp4": ("MXFP4", "stores 4-bit floats"),
    "hqq": ("HQQ", "packs codes in another order"),
    "quanto": ("quanto", "packs codes in another order"),
    "torchao": ("torchao", "stores tensors of its own types"),
}

# For each method: fields that must have one of these values if they are present, and fields that cannot change what the
# stored numbers mean (settings of the quantiser, lists of modules, hints for loaders).
_FP8_FIXED: Mapping[str, tuple[Any, ...]] = {
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),  # static adds tensors with scales of activations
    "weight_per_tensor": (False, None),
    "act_per_tensor": (False, None),
    "scale_fmt": ("float", None),
    "expert_dtype": ("fp8", None),
}
_FP8_IGNORED = frozenset(
    {"dequantize", "ignored_layers", "modules_to_convert", "modules_to_not_convert", "weight_block_size"}
)
_GPTQ_FIXED: Mapping[str, tuple[Any, ...]] = {
    "checkpoint_format": ("gptq", None),  # gptq_v2 stores zero points without the -1
    "format": ("gptq", None),
    "is_marlin_format": (False, None),
    "pack_dtype": ("int32", None),
}
_GPTQ_IGNORED = frozenset(
    {
        "act_group_aware",
        "backend",
        "batch_size",
        "block_name_to_quantize",
        "cache_block_outputs",
        "damp_auto_increment",
        "damp_percent",
        "dataset",
        "exllama_config",
        "lm_head",
        "max_input_length",
        "meta",
        "model_file_base_name",
        "model_name_or_path",
        "model_seqlen",
        "module_name_preceding_first_block",
        "modules_in_block_to_quantize",
        "mse",
        "pad_token_id",
        "quantizer",
        "static_groups",
        "tokenizer",
        "true_sequential",
        "use_cuda_fp16",
        "use_exllama",
    }
)
_GPTQ_READ = frozenset({"bits", "desc_act", "dynamic", "group_size", "sym"})
_GPTQ_BITS = (4, 8)
# -1: a group is a whole row. Any power of two from 16 can be split into the kernels' blocks.
_GPTQ_GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
_MAX_DYNAMIC_RULES = 1 << 16
_SIMPLE_PATTERN = re.compile(r"(?:[\w-]|\\?\.|\.\*)*\$?")
_MAX_WILDCARDS = 3


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """Blocks of FP8_BLOCK x FP8_BLOCK F8_E4M3 values: weight = value * scale."""

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return "float8_e4m3"


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """A checkpoint's format of codes: bits per code, and input features per group (the last group may have fewer)."""

    bits: int
    group_size: int
    has_zero_points: bool  # false: all are 2 ** (bits - 1)


@dataclass(frozen=True, slots=True)
class GptqRule:
    """The format of modules whose names begin with a match of `pattern`; bits None: they are not quantised.

    Raises:
        ConfigError: by `matches`, if the pattern has more than names, dots and `.*`, as it may take exponential time.
    """

    pattern: str
    bits: int | None
    group_size: int | None  # None: a whole row

    def matches(self, module: str) -> bool:
        if not _SIMPLE_PATTERN.fullmatch(self.pattern) or self.pattern.count("*") > _MAX_WILDCARDS:
            raise ConfigError(f"{_NAME}: the pattern {self.pattern[:60]!r} of dynamic is more than names, dots and .*")
        return re.match(self.pattern, module) is not None


@dataclass(frozen=True, slots=True)
class GptqFormat:
    """GPTQ, format 1: weight = (code - zero_point) * scale, one zero point and scale for a group of input features.

    Rules for single modules (`dynamic`) may set other bits and group sizes; a tensor's shape says which it has. None in
    group_sizes is a whole row. If symmetric, all zero points are 2 ** (bits - 1), which is checked; if not, they are
    read.
    """

    bits: tuple[int, ...]  # the first is the default
    group_sizes: tuple[int | None, ...]
    symmetric: bool
    may_permute: bool  # desc_act: a tensor must say which group an input feature is in
    rules: tuple[GptqRule, ...] = ()

    def foreseen_codes(self, module: str, num_columns: int) -> StoredCodes | None:
        """The codes of a linear module in the decoder layers by the first rule that matches it; None: floats.

        Args:
            module: its name in the checkpoint, "model.language_model.layers.0.mlp.experts.0.up_proj".
            num_columns: its input features.

        Raises:
            ConfigError: that rule, or one before it, cannot be read.
        """
        default = GptqRule("", self.bits[0], self.group_sizes[0])
        rule = next((rule for rule in self.rules if rule.matches(module)), default)
        if rule.bits is None:
            return None
        return StoredCodes(rule.bits, rule.group_size or num_columns, not self.symmetric)

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return f"gptq-int{self.bits[0]}"


SourceQuantization = Fp8Format | GptqFormat


def parse_quantization(document: Mapping[str, Any], text: Mapping[str, Any], where: str) -> SourceQuantization | None:
    """The format of a checkpoint's quantised tensors; None if config.json names no format.

    Args:
        document: all of config.json.
        text: the description of the text model within; the same object where it is flat.
        where: names the file in errors.

    Raises:
        ConfigError: the method or one of its settings is not supported, or a field is malformed.
    """
    given = [values[_NAME] for values in (document, text) if values.get(_NAME) is not None]
    if not given:
        return None
    if any(values != given[0] for values in given):
        raise ConfigError(f"{where}: {_NAME} differs between the model and its text_config: correct one")
    if not isinstance(given[0], dict):
        raise ConfigError(f"{where}: {_NAME} is not an object: {CORRECT}")
    fields = Fields(given[0], f"{where}: {_NAME}")
    method = fields.values.get("quant_method")
    if method == "fp8":
        return _fp8(fields)
    if method == "gptq":
        return _gptq(fields)
    if method in METHODS:
        return _gptq(Fields(as_gptq(fields), fields.where))
    if method is None and any(fields.values.get(name) for name in ("load_in_4bit", "load_in_8bit")):
        method = "bitsandbytes"  # of older versions
    if isinstance(method, str) and method in _FOREIGN:
        name, difference = _FOREIGN[method]
        remedy = _DEQUANTIZE if method == "bitsandbytes" else _UNQUANTIZED
        raise ConfigError(f"{fields.where}: quant_method {method!r} is of {name}, which {difference}: {remedy}")
    raise ConfigError(
        f"{fields.where}: quant_method {str(method)[:60]!r} is not one of fp8, gptq, {METHODS[0]}: {_UNQUANTIZED}"
    )


def _fp8(fields: Fields) -> Fp8Format:
    _check_fields(fields, "fp8", _FP8_FIXED, _FP8_IGNORED)
    block_size = fields.values.get("weight_block_size")
    if block_size != [FP8_BLOCK, FP8_BLOCK]:
        raise ConfigError(
            f"{fields.where}: weight_block_size {str(block_size)[:60]} of fp8 is not supported, only"
            f" {[FP8_BLOCK, FP8_BLOCK]} is: {_UNQUANTIZED}"
        )
    return Fp8Format()


def _gptq(fields: Fields) -> GptqFormat:
    rules = _rules(fields)
    overrides = {
        pattern: Fields({**fields.values, **values}, f"{fields.where}: dynamic {pattern[:60]!r}")
        for pattern, values in rules.items()
        if not pattern.startswith("-:")
    }
    described = [fields, *overrides.values()]
    for one in described:
        _check_fields(one, "gptq", _GPTQ_FIXED, _GPTQ_IGNORED | _GPTQ_READ)
    bits = [_choice(one, "bits", _GPTQ_BITS) for one in described]
    group_sizes = [_choice(one, "group_size", _GPTQ_GROUP_SIZES) for one in described]
    # Reading zero points is always right: if one module is not symmetric, those of all modules are read.
    symmetric = [one.flag("sym", default=False) for one in described]
    permuting = [one.flag("desc_act", default=False) for one in described]
    sizes = [None if size == -1 else size for size in group_sizes]
    own = dict(zip(overrides, zip(bits[1:], sizes[1:], strict=True), strict=True))
    return GptqFormat(
        bits=tuple(dict.fromkeys(bits)),
        group_sizes=tuple(dict.fromkeys(sizes)),
        symmetric=all(symmetric),
        may_permute=any(permuting),
        rules=tuple(GptqRule(re.sub("^[+-]:", "", pattern), *own.get(pattern, (None, None))) for pattern in rules),
    )


def _rules(fields: Fields) -> Mapping[str, Any]:
    """`dynamic`: settings of single modules by pattern; modules of a pattern with the prefix -: are not quantised."""
    dynamic = fields.values.get("dynamic")
    if is_off(dynamic):
        return {}
    if not isinstance(dynamic, dict) or len(dynamic) > _MAX_DYNAMIC_RULES:
        raise fields.error("dynamic", "an object of rules")
    if any(not isinstance(values, dict) for pattern, values in dynamic.items() if not pattern.startswith("-:")):
        raise fields.error("dynamic", "an object of rules")
    return dynamic


def _check_fields(fields: Fields, method: str, fixed: Mapping[str, tuple[Any, ...]], known: frozenset[str]) -> None:
    for name, value in fields.values.items():
        if name in fixed:
            # `==` alone would let 1 stand for true and 0 for false.
            if not any(value == choice and type(value) is type(choice) for choice in fixed[name]):
                raise ConfigError(
                    f"{fields.where}: {name} {str(value)[:60]!r} of {method} is not supported: {_UNQUANTIZED}"
                )
        elif name not in known and name != "quant_method" and not is_off(value):
            raise ConfigError(
                f"{fields.where} has the field {name[:60]!r} of {method}, which is unknown here and may change the"
                " weights: upgrade qwonnx, or remove it if it does not matter"
            )


def _choice(fields: Fields, name: str, allowed: tuple[int, ...]) -> int:
    value = fields.values.get(name)
    if value is None:
        raise ConfigError(f"{fields.where} has no {name}: {CORRECT}")
    if type(value) is not int or value not in allowed:
        raise ConfigError(
            f"{fields.where}: {name} {str(value)[:60]} of gptq is not supported, only"
            f" {', '.join(map(str, allowed))}: {_UNQUANTIZED}"
        )
    return value
