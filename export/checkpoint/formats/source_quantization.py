"""config.json's `quantization_config`: how a checkpoint's quantised tensors are stored.

    quant_method           rules                     tensors
    fp8                    float8_config.py          float8.py
    gptq                   gptq_config.py            gptq.py
    awq                    awq_config.py             awq.py
    auto-round             auto_round.py             gptq.py, awq.py
    compressed-tensors     compressed_tensors.py     integers.py, float8.py, nvfp4.py
    modelopt               modelopt_config.py        nvfp4.py, float8.py
    bitsandbytes           bitsandbytes_config.py    bitsandbytes.py, integers.py

The rules read the fields that say what the stored numbers mean. They refuse an unknown field that could change this, as
everywhere in config.json. stored_weights.py recognises quantised tensors by their companion tensors, because tools
disagree about lists of exclusions. A plan has no tensors, so it relies on the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats import auto_round, modelopt_config
from qwonnx.export.checkpoint.formats.awq_config import parse_awq
from qwonnx.export.checkpoint.formats.bitsandbytes_config import parse_bitsandbytes
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.compressed_tensors import parse_compressed
from qwonnx.export.checkpoint.formats.float8_config import parse_fp8
from qwonnx.export.checkpoint.formats.format_fields import UNQUANTIZED
from qwonnx.export.checkpoint.formats.gptq_config import parse_gptq
from qwonnx.export.checkpoint.formats.modelopt_config import parse_modelopt
from qwonnx.export.errors import ConfigError
from qwonnx.runtime.artifact.object_fields import CORRECT

_NAME = "quantization_config"


class SourceQuantization(Protocol):
    """What config.json says of quantised tensors; immutable, and compared by value."""

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        ...

    @property
    def has_codes(self) -> bool:
        """Whether the rules foresee codes that an export keeps."""
        ...

    @property
    def num_rules(self) -> int:
        """Patterns and names that a plan compares with each weight."""
        ...

    def check_patterns(self) -> None:
        """Refuse rules that cannot be tried on names.

        Raises:
            ConfigError: a pattern is malformed, or may take long.
        """
        ...

    def foreseen_codes(self, module: str, num_columns: int) -> StoredCodes | None:
        """The codes that a linear module in the decoder layers probably has, which an export keeps; None: it has none.

        Args:
            module: its name in the checkpoint, "model.language_model.layers.0.mlp.experts.0.up_proj".
            num_columns: its input features.

        Raises:
            ConfigError: a pattern of the rules cannot be tried.
        """
        ...


_PARSERS: Mapping[str, Callable[[Fields], SourceQuantization]] = {
    "fp8": parse_fp8,
    "gptq": parse_gptq,
    "awq": parse_awq,
    "compressed-tensors": parse_compressed,
    "bitsandbytes": parse_bitsandbytes,
    **dict.fromkeys(auto_round.METHODS, auto_round.parse_auto_round),
    **dict.fromkeys(modelopt_config.METHODS, parse_modelopt),
}
# Methods that people use for this model and that are not read, by quant_method: their name, and what is different.
_FOREIGN = {
    "fbgemm_fp8": ("FBGEMM", "stores FP8 with a scale for each row"),
    "mxfp4": ("MXFP4", "stores 4-bit floats"),
    "hqq": ("HQQ", "packs codes in another order"),
    "quanto": ("quanto", "packs codes in another order"),
    "torchao": ("torchao", "stores tensors of its own types"),
}


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
    if method is None and any(fields.values.get(name) for name in ("load_in_4bit", "load_in_8bit")):
        method = "bitsandbytes"  # of older versions
    if isinstance(method, str) and method in _PARSERS:
        return _PARSERS[method](fields)
    if isinstance(method, str) and method in _FOREIGN:
        name, difference = _FOREIGN[method]
        raise ConfigError(f"{fields.where}: quant_method {method!r} is of {name}, which {difference}: {UNQUANTIZED}")
    known = ("fp8", "gptq", "awq", auto_round.METHODS[0], "compressed-tensors", "modelopt", "bitsandbytes")
    raise ConfigError(
        f"{fields.where}: quant_method {str(method)[:60]!r} is not one of {', '.join(known)}: {UNQUANTIZED}"
    )
