"""bitsandbytes' quantization_config, as transformers writes it: 4 bits (nf4, fp4) or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.format_fields import check_fields, names
from qwonnx.export.errors import ConfigError
from qwonnx.runtime.artifact.object_fields import CORRECT

_FIXED: Mapping[str, tuple[Any, ...]] = {"bnb_4bit_quant_type": ("nf4", "fp4", None)}
_READ = frozenset({"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_skip_modules"})
_IGNORED = frozenset(
    {
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_storage",  # another view of the same bytes
        "bnb_4bit_use_double_quant",  # the tensors say so
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "llm_int8_threshold",  # of activations
        "modules_to_not_convert",
        "target_parameters",
    }
)


@dataclass(frozen=True, slots=True)
class BitsAndBytesFormat:
    """Matrices of 4 bits in blocks of their values, or of 8 bits with a scale for each row."""

    bits: int
    excluded: tuple[str, ...] = ()

    @property
    def has_codes(self) -> bool:
        return self.bits == 8

    @property
    def num_rules(self) -> int:
        return len(self.excluded)

    def check_patterns(self) -> None:
        """There are none: parts of names are compared."""

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return f"bitsandbytes-{self.bits}bit"

    def foreseen_codes(self, module: str, num_columns: int) -> StoredCodes | None:
        """Codes of 8 bits, but for experts, which transformers keeps in one tensor; see SourceQuantization."""
        if self.bits == 4 or ".experts." in module or any(part in module for part in self.excluded):
            return None
        return StoredCodes(8, num_columns, has_zero_points=False)


def parse_bitsandbytes(fields: Fields) -> BitsAndBytesFormat:
    """The format of a quantization_config of bitsandbytes.

    Raises:
        ConfigError: a setting is not supported, or a field is malformed.
    """
    check_fields(fields, "bitsandbytes", _FIXED, _READ | _IGNORED)
    of_bits = {
        bits: any(fields.flag(name, default=False) for name in (f"load_in_{bits}bit", f"_load_in_{bits}bit"))
        for bits in (4, 8)
    }
    if sum(of_bits.values()) != 1:
        raise ConfigError(f"{fields.where} must have one of load_in_4bit and load_in_8bit: {CORRECT}")
    return BitsAndBytesFormat(4 if of_bits[4] else 8, names(fields, "llm_int8_skip_modules"))
