"""config.json of the model that a GGUF file was made from, from the file's metadata.

The document is checked by config.py as any config.json is. Metadata of the architecture that is unknown here is refused
unless it is off: it may change the model.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from qwonnx.export.checkpoint.gguf.header import ArrayPlace, GgufFile
from qwonnx.export.checkpoint.gguf.model import GgufModel
from qwonnx.export.errors import ConfigError, UnsupportedModelError
from qwonnx.runtime.artifact.strict_json import quoted

ARCHITECTURES = {"qwen35": "Qwen3_5ForCausalLM", "qwen35moe": "Qwen3_5MoeForCausalLM"}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

# Metadata after the architecture's name -> field of config.json.
_FIELDS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_used_count": "num_experts_per_tok",
    "feed_forward_length": "intermediate_size",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.time_step_rank": "linear_num_value_heads",
}
_BLOCKS, _DRAFT_BLOCKS = "block_count", "nextn_predict_layers"
_RECURRENT, _INTERVAL = "attention.recurrent_layers", "full_attention_interval"
_VALUE_LENGTH, _INNER_SIZE = "attention.value_length", "ssm.inner_size"
_ROTARY, _SECTIONS, _BASE = "rope.dimension_count", "rope.dimension_sections", "rope.freq_base"
_SCALING = "rope.scaling.type"
_YARN = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_USED = {
    *_FIELDS,
    *_YARN,
    _BLOCKS,
    _DRAFT_BLOCKS,
    _RECURRENT,
    _INTERVAL,
    _VALUE_LENGTH,
    _INNER_SIZE,
    _ROTARY,
    _SECTIONS,
}
_USED |= {_BASE, _SCALING}
# Metadata that says what every model of this architecture does, by the value that says it.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_gating_func": (1,),  # softmax
    "expert_weights_norm": (True,),
    "expert_weights_scale": (1.0,),
    "rope.scaling.finetuned": (True, False),
}
_IGNORED = frozenset({"vocab_size"})  # the embedding has it

_CONVERT = "convert the model again with a present llama.cpp, or export the checkpoint that it was made from"


def check_is_model(file: GgufFile) -> str:
    """The name of a file's architecture, which must be one of Qwen 3.5's.

    Raises:
        UnsupportedModelError: it is not.
    """
    kind, name = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    if name not in ARCHITECTURES or kind != "model":
        raise UnsupportedModelError(
            f"{file.path} is of the architecture {quoted(name)} and the type {quoted(kind)}, which is not supported:"
            f" use a model of {' or '.join(ARCHITECTURES)}"
        )
    return str(name)


def config_document(model: GgufModel) -> dict[str, Any]:
    """A flat config.json.

    Raises:
        UnsupportedModelError: the architecture is not one of Qwen 3.5's.
        ConfigError: metadata is missing, or is unknown and may change the model.
    """
    file = model.first
    name = check_is_model(file)
    prefix = f"{name}."
    values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    _check_known(file, values)
    document: dict[str, Any] = {field: _plain(values[key]) for key, field in _FIELDS.items() if key in values}
    num_draft = _whole(file, values, _DRAFT_BLOCKS, 0)
    num_layers = _whole(file, values, _BLOCKS) - num_draft
    heads, key_length = (_whole(file, values, key) for key in ("ssm.time_step_rank", "attention.key_length"))
    if not heads or not key_length or _whole(file, values, _VALUE_LENGTH, key_length) != key_length:
        raise ConfigError(f"{file.path}: sizes of heads are 0, or those of keys and values differ: {_CONVERT}")
    embedding = model.tensors.get(EMBEDDING)
    if embedding is None:
        raise ConfigError(f"{file.path} has no {EMBEDDING}: it is a part of a model; {_CONVERT}")
    return document | {
        "architectures": [ARCHITECTURES[name]],
        "model_type": "qwen3_5_moe_text" if name == "qwen35moe" else "qwen3_5_text",
        "num_hidden_layers": num_layers,
        "layer_types": _layer_types(file, prefix, values, num_layers),
        "linear_value_head_dim": _whole(file, values, _INNER_SIZE) // heads,
        "tie_word_embeddings": HEAD not in model.tensors,
        "rope_parameters": _rope(file, prefix, values, key_length),
        "vocab_size": embedding.num_rows,
    }


def _check_known(file: GgufFile, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in _FIXED:
            known = value in _FIXED[key]
        else:
            known = key in _USED or key in _IGNORED or (not isinstance(value, ArrayPlace) and not value)
        if not known:
            shown = "a list" if isinstance(value, ArrayPlace) else quoted(value)
            raise ConfigError(f"{file.path}: {quoted(key)} is {shown}, which may change the model: {_CONVERT}")


def _layer_types(file: GgufFile, prefix: str, values: Mapping[str, Any], num_layers: int) -> list[str]:
    recurrent = file.array(prefix + _RECURRENT)
    if recurrent is None:
        interval = _whole(file, values, _INTERVAL, 4)
        if not 0 < num_layers <= 1 << 10 or not interval:  # config.py bounds it too, and comes later
            raise ConfigError(f"{file.path}: {_BLOCKS} or {_INTERVAL} is out of range: {_CONVERT}")
        recurrent = [(layer + 1) % interval != 0 for layer in range(num_layers)]
    return ["linear_attention" if is_linear else "full_attention" for is_linear in recurrent[: max(num_layers, 0)]]


def _rope(file: GgufFile, prefix: str, values: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "mrope_interleaved": True,
        "partial_rotary_factor": _whole(file, values, _ROTARY, head_dim // 4) / head_dim,
        "rope_theta": _plain(values.get(_BASE, 1e7)),
        "rope_type": "default",
    }
    sections = file.array(prefix + _SECTIONS)
    if sections is not None:
        if len(sections) != 4 or sections[3] != 0:
            raise ConfigError(f"{file.path}: {_SECTIONS} is not three sizes and a 0: {_CONVERT}")
        rope["mrope_section"] = sections[:3]
    kind = values.get(_SCALING, "none")
    if kind == "yarn":
        rope |= {"rope_type": "yarn"} | {field: _plain(values[key]) for key, field in _YARN.items() if key in values}
    elif kind != "none":
        raise ConfigError(f"{file.path}: {_SCALING} {quoted(kind)} is not supported: only yarn is")
    return rope


def _whole(file: GgufFile, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A number of at least 0."""
    value = values.get(key, default)
    if type(value) is not int or value < 0:
        raise ConfigError(f"{file.path}: {quoted(key)} is {quoted(value)} and must be a number: {_CONVERT}")
    return value


def _plain(value: Any) -> Any:
    """A value as config.json would have it: a float32 by its shortest decimal, 1e-06 and not 9.999999974752427e-07."""
    return shortest(value) if isinstance(value, float) else value


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32."""
    stored = struct.pack("<f", value)
    texts = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next((float(text) for text in texts if struct.pack("<f", float(text)) == stored), value)
