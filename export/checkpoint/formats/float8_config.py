"""quantization_config of checkpoints in FP8 with blocks, as the official ones are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.codes import WithoutCodes
from qwonnx.export.checkpoint.formats.format_fields import UNQUANTIZED, check_fields
from qwonnx.export.errors import ConfigError

FP8_BLOCK = 128  # rows and columns of a block that shares a scale

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),  # static adds tensors with scales of activations
    "weight_per_tensor": (False, None),
    "act_per_tensor": (False, None),
    "scale_fmt": ("float", None),
    "expert_dtype": ("fp8", None),
}
_IGNORED = frozenset(
    {"dequantize", "ignored_layers", "modules_to_convert", "modules_to_not_convert", "weight_block_size"}
)


@dataclass(frozen=True, slots=True)
class Fp8Format(WithoutCodes):
    """Blocks of FP8_BLOCK x FP8_BLOCK F8_E4M3 values: weight = value * scale."""

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return "float8_e4m3"


def parse_fp8(fields: Fields) -> Fp8Format:
    """The format of a quantization_config of fp8.

    Raises:
        ConfigError: a setting is not supported, or a field is malformed.
    """
    check_fields(fields, "fp8", _FIXED, _IGNORED)
    block_size = fields.values.get("weight_block_size")
    if block_size != [FP8_BLOCK, FP8_BLOCK]:
        raise ConfigError(
            f"{fields.where}: weight_block_size {str(block_size)[:60]} of fp8 is not supported, only"
            f" {[FP8_BLOCK, FP8_BLOCK]} is: {UNQUANTIZED}"
        )
    return Fp8Format()
