"""GPTQ's quantization_config: bits, group sizes, and rules for single modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.format_fields import GROUP_SIZES, check_fields, choice
from qwonnx.export.checkpoint.formats.module_patterns import matches
from qwonnx.runtime.artifact.object_fields import is_off

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "checkpoint_format": ("gptq", None),  # gptq_v2 stores zero points without the -1
    "format": ("gptq", None),
    "is_marlin_format": (False, None),
    "pack_dtype": ("int32", None),
}
# Settings of the quantiser, lists of modules, hints for loaders: they cannot change what the stored numbers mean.
_IGNORED = frozenset(
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
_READ = frozenset({"bits", "desc_act", "dynamic", "group_size", "sym"})
_BITS = (4, 8)
_MAX_DYNAMIC_RULES = 1 << 16


@dataclass(frozen=True, slots=True)
class GptqRule:
    """The format of modules whose names begin with a match of `pattern`; bits None: they are not quantised.

    Raises:
        ConfigError: by `matches`, if the pattern may take long (module_patterns.py).
    """

    pattern: str
    bits: int | None
    group_size: int | None  # None: a whole row

    def matches(self, module: str) -> bool:
        return matches(self.pattern, module, "dynamic")


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
        """The codes of a linear module by the first rule that matches it; see SourceQuantization."""
        default = GptqRule("", self.bits[0], self.group_sizes[0])
        rule = next((rule for rule in self.rules if rule.matches(module)), default)
        if rule.bits is None or self.may_permute:
            return None
        return StoredCodes(rule.bits, rule.group_size or num_columns, not self.symmetric)

    @property
    def has_codes(self) -> bool:
        return not self.may_permute  # permuted ones are not kept, and only the tensors say which are

    @property
    def num_rules(self) -> int:
        return len(self.rules)

    def check_patterns(self) -> None:
        """Refuse rules that cannot be tried on names; see SourceQuantization."""
        for rule in self.rules:
            rule.matches("")

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return f"gptq-int{self.bits[0]}"


def parse_gptq(fields: Fields) -> GptqFormat:
    """The format of a quantization_config of GPTQ.

    Raises:
        ConfigError: a setting is not supported, or a field is malformed.
    """
    rules = _rules(fields)
    overrides = {
        pattern: Fields({**fields.values, **values}, f"{fields.where}: dynamic {pattern[:60]!r}")
        for pattern, values in rules.items()
        if not pattern.startswith("-:")
    }
    described = [fields, *overrides.values()]
    for one in described:
        check_fields(one, "gptq", _FIXED, _IGNORED | _READ)
    bits = [choice(one, "gptq", "bits", _BITS) for one in described]
    group_sizes = [choice(one, "gptq", "group_size", GROUP_SIZES) for one in described]
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
