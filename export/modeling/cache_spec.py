"""Names, shapes and dtypes of all states of a sequence, for the graph and for the manifest."""

from __future__ import annotations

from enum import StrEnum

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.runtime.artifact.manifest import StateSpec


class KvType(StrEnum):
    """How keys and values are stored, the most exact first: unchanged, one byte a channel, two channels a byte."""

    FLOAT32 = "float32"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        return {"float32": 32, "int8": 8, "int4": 4}[self.value]


def state_specs(config: ModelConfig, kv: KvType = KvType.FLOAT32) -> tuple[StateSpec, ...]:
    """Two states a layer, in the order in which the decoder takes and yields them.

    Full attention: key (normed and rotated) and value, in a buffer of max_model_len positions, stored as `kv` says.
    int4 packs the channels 2i and 2i + 1 into byte i, low half first, each as its code + 8: the layout of
    com.microsoft.GroupQueryAttention. Linear attention: the last K-1 inputs of the convolution, and the recurrent
    state, always float32, because a narrower one drifts.
    """
    return tuple(
        spec for layer, kind in enumerate(config.layer_types) for spec in _layer_states(config, layer, kind, kv)
    )


def _layer_states(config: ModelConfig, layer: int, layer_type: str, kv: KvType) -> tuple[StateSpec, StateSpec]:
    if layer_type == "full_attention":
        dtype, width = {
            KvType.FLOAT32: ("float32", config.head_dim),
            KvType.INT8: ("int8", config.head_dim),
            KvType.INT4: ("uint8", config.head_dim // 2),
        }[kv]
        buffer = ("batch", config.num_key_value_heads, "max_model_len", width)
        return _state(layer, "key", buffer, dtype), _state(layer, "value", buffer, dtype)
    key_width = config.linear_num_key_heads * config.linear_key_head_dim
    channels = 2 * key_width + config.linear_num_value_heads * config.linear_value_head_dim
    matrix = ("batch", config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    return (
        _state(layer, "conv_state", ("batch", channels, config.linear_conv_kernel_dim - 1), "float32"),
        _state(layer, "recurrent_state", matrix, "float32"),
    )


def _state(layer: int, kind: str, shape: tuple[int | str, ...], dtype: str) -> StateSpec:
    return StateSpec(
        layer=layer,
        kind=kind,
        past=f"past_key_values.{layer}.{kind}",
        present=f"present.{layer}.{kind}",
        dtype=dtype,
        shape=shape,
    )
