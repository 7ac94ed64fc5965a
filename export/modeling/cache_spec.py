"""Names, shapes and dtypes of all states of a sequence, for the graph and for the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.stage_cut import StageCut
from qwonnx.runtime.artifact.manifest import StateSpec


class KvType(StrEnum):
    """How keys and values are stored: unchanged, one byte a channel, two channels a byte.

    Their order is that of plans, which offer the most exact one that fits first.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    FLOAT8 = "fp8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        return {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "fp8": 8, "int4": 4}[self.value]

    @property
    def is_quantized(self) -> bool:
        return self.bits < 16


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The states of linear attention as a target's kernels take them.

    convolution: dtype of the last inputs of the convolution.
    recurrent: dtype of the recurrent states. One narrower than float32 drifts.
    channels_last: they are [batch, K-1, channels], and not [batch, channels, K-1].
    value_major: a recurrent state is [batch, heads, value_head_dim, key_head_dim], and not its transpose.
    """

    convolution: str = "float32"
    recurrent: str = "float32"
    channels_last: bool = False
    value_major: bool = False


AS_TRACED = StateLayout()


def state_specs(
    config: ModelConfig, kv: KvType = KvType.FLOAT32, layout: StateLayout = AS_TRACED
) -> tuple[StateSpec, ...]:
    """Two states a layer, in the order in which the decoder takes and yields them.

    Full attention: key (normed and rotated) and value, in a buffer of max_model_len positions, stored as `kv` says. fp8
    has 4 bits of exponent and 3 of fraction. int4 packs the channels 2i and 2i + 1 into byte i, low half first, each as
    its code + 8: the layout of com.microsoft.GroupQueryAttention. Linear attention: the last K-1 inputs of the
    convolution, and the recurrent state, in float32 unless the target has no kernel for it.
    """
    return tuple(
        spec for layer, kind in enumerate(config.layer_types) for spec in _layer_states(config, layer, kind, kv, layout)
    )


def stage_states(states: tuple[StateSpec, ...], cut: StageCut | None) -> tuple[StateSpec, ...]:
    """Those of the states that belong to a stage's layers; all of them without a stage."""
    return states if cut is None else tuple(state for state in states if cut.first <= state.layer < cut.end)


def _layer_states(
    config: ModelConfig, layer: int, layer_type: str, kv: KvType, layout: StateLayout
) -> tuple[StateSpec, StateSpec]:
    if layer_type == "full_attention":
        dtype, width = {
            KvType.FLOAT32: ("float32", config.head_dim),
            KvType.FLOAT16: ("float16", config.head_dim),
            KvType.BFLOAT16: ("bfloat16", config.head_dim),
            KvType.INT8: ("int8", config.head_dim),
            KvType.FLOAT8: ("float8e4m3fn", config.head_dim),
            KvType.INT4: ("uint8", config.head_dim // 2),
        }[kv]
        buffer = ("batch", config.num_key_value_heads, "max_model_len", width)
        return _state(layer, "key", buffer, dtype), _state(layer, "value", buffer, dtype)
    key_width = config.linear_num_key_heads * config.linear_key_head_dim
    channels = 2 * key_width + config.linear_num_value_heads * config.linear_value_head_dim
    taps = config.linear_conv_kernel_dim - 1
    window = (taps, channels) if layout.channels_last else (channels, taps)
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    matrix = (value, key) if layout.value_major else (key, value)
    return (
        _state(layer, "conv_state", ("batch", *window), layout.convolution),
        _state(layer, "recurrent_state", ("batch", config.linear_num_value_heads, *matrix), layout.recurrent),
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
