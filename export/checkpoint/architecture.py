"""config.json's `architectures` and `model_type`: which of Qwen 3.5's models it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwonnx.export.errors import ConfigError, UnsupportedModelError
from qwonnx.runtime.artifact.object_fields import CORRECT
from qwonnx.runtime.artifact.strict_json import quoted

# The architectures and the model_type of each: of the whole model, and of its text part.
_MODEL_TYPES = {
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_5_moe", "qwen3_5_moe_text"),
    "Qwen3_5MoeForCausalLM": ("qwen3_5_moe", "qwen3_5_moe_text"),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5", "qwen3_5_text"),
    "Qwen3_5ForCausalLM": ("qwen3_5", "qwen3_5_text"),
}
MOE_ARCHITECTURES = frozenset(name for name in _MODEL_TYPES if "Moe" in name)

# Names that wrappers leave in `architectures`: those of peft after a merge, and of torch.compile.
_WRAPPERS = (["PeftModel"], ["PeftModelForCausalLM"], ["OptimizedModule"])


def architecture_of(document: Mapping[str, Any], text: Mapping[str, Any], where: str) -> str:
    """The architecture. A flat file describes a text model, whatever class it names; model_type may replace it.

    Args:
        document: all of config.json.
        text: the description of the text model within; the same object where it is flat.
        where: names the file in errors.

    Raises:
        UnsupportedModelError: it is not one of Qwen 3.5's.
        ConfigError: the file names none or several, and has no model_type that says it.
    """
    is_flat = text is document
    names = document.get("architectures")
    if names in (None, []) or names in _WRAPPERS:
        kind = document.get("model_type") or text.get("model_type")
        known = [name for name, kinds in _MODEL_TYPES.items() if kind in kinds]
        if not known:
            raise ConfigError(
                f"{where} names no architecture, and its model_type is {quoted(kind)}: add `architectures` or"
                " `model_type` as the base model has them"
            )
        names = [next(name for name in known if name.endswith("ForCausalLM") == is_flat)]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(f"{where} must name one architecture in `architectures`: {CORRECT}")
    if names[0] not in _MODEL_TYPES:
        raise UnsupportedModelError(
            f"{where} describes a {quoted(names[0])}, which is not supported: use one of {', '.join(_MODEL_TYPES)}"
        )
    return names[0].replace("ForConditionalGeneration", "ForCausalLM") if is_flat else names[0]


def model_type_of(document: Mapping[str, Any], text: Mapping[str, Any], architecture: str, where: str) -> str:
    """config.json's model_type.

    Raises:
        UnsupportedModelError: it belongs to another architecture.
    """
    allowed = _MODEL_TYPES[architecture]
    for described in (document, text):
        found = described.get("model_type", allowed[0])
        if found not in allowed:
            raise UnsupportedModelError(
                f"{where}: model_type {quoted(found)} is not {architecture}'s ({' or '.join(allowed)}): "
                "check that the file belongs to this checkpoint"
            )
    return str(document.get("model_type", allowed[0]))
