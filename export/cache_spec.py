"""Names, shapes and dtypes of every state a sequence carries: written here once, for the trace and for the manifest."""

from __future__ import annotations

from qwonnx.export.artifact import StateSpec
from qwonnx.export.config import ModelConfig


def state_specs(config: ModelConfig) -> tuple[StateSpec, ...]:
    """Two states a layer, in the order in which the decoder takes and yields them.

    Full attention: key (normed and rotated) and value, in a buffer of max_model_len positions. Linear attention: the
    last K-1 inputs of the convolution, and the recurrent state, float32 whatever the weights: a narrower one drifts.
    """
    return tuple(spec for layer, kind in enumerate(config.layer_types) for spec in _layer_states(config, layer, kind))


def _layer_states(config: ModelConfig, layer: int, layer_type: str) -> tuple[StateSpec, StateSpec]:
    if layer_type == "full_attention":
        buffer = ("batch", config.num_key_value_heads, "max_model_len", config.head_dim)
        return _state(layer, "key", buffer), _state(layer, "value", buffer)
    key_width = config.linear_num_key_heads * config.linear_key_head_dim
    channels = 2 * key_width + config.linear_num_value_heads * config.linear_value_head_dim
    matrix = ("batch", config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    return (
        _state(layer, "conv_state", ("batch", channels, config.linear_conv_kernel_dim - 1)),
        _state(layer, "recurrent_state", matrix),
    )


def _state(layer: int, kind: str, shape: tuple[int | str, ...]) -> StateSpec:
    return StateSpec(
        layer=layer,
        kind=kind,
        past=f"past_key_values.{layer}.{kind}",
        present=f"present.{layer}.{kind}",
        dtype="float32",
        shape=shape,
    )
