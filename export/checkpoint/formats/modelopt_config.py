"""ModelOpt's description of weights in NVFP4 or FP8, in config.json or in the side file hf_quant_config.json.

    NVFP4    X.weight U8, X.weight_scale F8_E4M3, X.weight_scale_2 F32
    FP8      X.weight F8_E4M3, X.weight_scale F32

The tensors of a module say which of these it has. Activations are not quantised by an export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.codes import WithoutCodes
from qwonnx.export.checkpoint.formats.compressed_tensors import FP4_GROUP, scheme_groups
from qwonnx.export.checkpoint.formats.format_fields import UNQUANTIZED, check_fields
from qwonnx.export.errors import ConfigError
from qwonnx.runtime.artifact.object_fields import CORRECT, is_off

METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed")
SIDE_FILE = "hf_quant_config.json"
_ALGORITHMS = ("NVFP4", "W4A16_NVFP4", "FP8", "FP8_PER_CHANNEL_PER_TOKEN")
_MIXED = "MIXED_PRECISION"
_FIXED: Mapping[str, tuple[Any, ...]] = {"group_size": (FP4_GROUP, None), "quant_algo": (*_ALGORITHMS, _MIXED)}
_READ = frozenset({"config_groups", "quantized_layers"})
_IGNORED = frozenset({"exclude_modules", "ignore", "kv_cache_quant_algo", "kv_cache_scheme", "producer"})


@dataclass(frozen=True, slots=True)
class ModelOptFormat(WithoutCodes):
    """The algorithms of a checkpoint of ModelOpt; its tensors say the rest."""

    algorithms: tuple[str, ...]

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return f"modelopt-{'+'.join(self.algorithms).lower()}"


def parse_modelopt(fields: Fields) -> ModelOptFormat:
    """The format of a quantization_config of ModelOpt.

    Raises:
        ConfigError: an algorithm is not supported, or a field is malformed.
    """
    algorithm = fields.values.get("quant_algo")
    if algorithm is None:
        raise ConfigError(f"{fields.where} has no quant_algo: {CORRECT}")
    check_fields(fields, "ModelOpt", _FIXED, _READ | _IGNORED)
    for _ in scheme_groups(fields, "ModelOpt"):
        pass  # checked
    if algorithm != _MIXED:
        return ModelOptFormat((algorithm,))
    layers = fields.values.get("quantized_layers")
    if not isinstance(layers, dict) or is_off(layers) or any(not isinstance(one, dict) for one in layers.values()):
        raise fields.error("quantized_layers", "an object of layers")
    found = tuple(dict.fromkeys(str(one.get("quant_algo")) for one in layers.values()))
    for one in found:
        if one not in _ALGORITHMS:
            raise ConfigError(
                f"{fields.where}: quant_algo {one[:60]!r} of ModelOpt is not supported, only {', '.join(_ALGORITHMS)}:"
                f" {UNQUANTIZED}"
            )
    return ModelOptFormat(found)


def of_side_file(document: Mapping[str, Any]) -> dict[str, Any]:
    """What hf_quant_config.json says, as a quantization_config; empty if it is not ModelOpt's or describes nothing."""
    inner = document.get("quantization")
    if not isinstance(inner, dict) or is_off(inner.get("quant_algo")):
        return {}
    return {**inner, "quant_method": METHODS[0]}
