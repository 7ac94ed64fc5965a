"""AWQ's quantization_config, in the order of gemm kernels; also AutoRound's, in the packing of AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.format_fields import GROUP_SIZES, UNQUANTIZED, check_fields, choice, names
from qwonnx.export.errors import ConfigError

BITS = 4
_VERSIONS = ("gemm", None)  # gemv, gemv_fast, exllama and llm-awq pack in other orders
_FIXED: Mapping[str, tuple[Any, ...]] = {"desc_act": (False, None), "checkpoint_format": ("gemm", "awq", "gptq", None)}
_READ = frozenset({"bits", "format", "group_size", "modules_to_not_convert", "sym", "version", "w_bit", "zero_point"})
_IGNORED = frozenset(
    {
        "act_group_aware",
        "backend",
        "damp_percent",
        "dataset",
        "do_fuse",
        "exllama_config",
        "fuse_max_seq_len",
        "max_input_length",
        "meta",
        "modules_to_fuse",
        "q_group_size",
        "static_groups",
        "true_sequential",
    }
)


@dataclass(frozen=True, slots=True)
class AwqFormat:
    """AWQ, gemm: weight = (code - zero_point) * scale, one zero point and scale for a group of input features.

    group_sizes are all that a module may have; None is a whole row. If symmetric, all zero points are 8, which is
    checked. excluded are parts of names of modules that are not quantised.
    """

    group_sizes: tuple[int | None, ...]
    symmetric: bool
    excluded: tuple[str, ...] = ()

    @property
    def has_codes(self) -> bool:
        return True

    @property
    def num_rules(self) -> int:
        return len(self.excluded)

    def check_patterns(self) -> None:
        """There are none: parts of names are compared."""

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return f"awq-int{BITS}"

    def foreseen_codes(self, module: str, num_columns: int) -> StoredCodes | None:
        """The codes of a linear module; see SourceQuantization."""
        if any(part in module for part in self.excluded):
            return None
        return StoredCodes(BITS, self.group_sizes[0] or num_columns, not self.symmetric)


def parse_awq(fields: Fields) -> AwqFormat:
    """The format of a quantization_config of AWQ.

    Raises:
        ConfigError: a setting is not supported, or a field is malformed.
    """
    values = fields.values
    for name in ("version", "format"):
        value = values.get(name)
        if (value.lower() if isinstance(value, str) else value) not in _VERSIONS:
            raise ConfigError(
                f"{fields.where}: {name} {str(value)[:60]!r} of awq is not supported, only gemm is: {UNQUANTIZED}"
            )
    check_fields(fields, "awq", _FIXED, _READ | _IGNORED)
    choice(Fields({"bits": values.get("bits", values.get("w_bit"))}, fields.where), "awq", "bits", (BITS,))
    size = choice(
        Fields({"group_size": values.get("group_size", values.get("q_group_size"))}, fields.where),
        "awq",
        "group_size",
        GROUP_SIZES,
    )
    # Without zero_point every zero point is in the middle, and is stored nevertheless.
    symmetric = not fields.flag("zero_point", default=True)
    return AwqFormat((None if size == -1 else size,), symmetric, names(fields, "modules_to_not_convert"))
