"""Bytes of a sequence's states: keys and values grow with its length, the other states have a fixed size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.cache_spec import AS_TRACED, KvType, StateLayout, state_specs
from qwonnx.runtime.artifact.manifest import StateSpec

_STATE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True, slots=True)
class StateSizes:
    """Bytes of a sequence's states, in all layers together."""

    kv_values_per_token: int  # numbers in keys and values, for every type of storage
    num_kv_stripes: int  # runs of memory that grow with a sequence: layers x key and value x heads
    recurrent_bytes: int
    conv_bytes: int
    num_linear_layers: int

    def kv_bytes_per_token(self, kv: KvType) -> int:
        """Scales of quantised caches belong to the graph and are not counted."""
        return self.kv_values_per_token * kv.bits // 8

    @property
    def fixed_bytes(self) -> int:
        return self.recurrent_bytes + self.conv_bytes


def state_sizes(config: ModelConfig, layout: StateLayout = AS_TRACED) -> StateSizes:
    """Sums over `cache_spec.state_specs`."""
    specs = state_specs(config, layout=layout)
    growing = [spec for spec in specs if spec.kind in ("key", "value")]
    return StateSizes(
        kv_values_per_token=sum(_values(spec) for spec in growing),
        num_kv_stripes=len(growing) * config.num_key_value_heads,
        recurrent_bytes=_bytes(specs, "recurrent_state"),
        conv_bytes=_bytes(specs, "conv_state"),
        num_linear_layers=sum(spec.kind == "recurrent_state" for spec in specs),
    )


def _values(spec: StateSpec) -> int:
    """Numbers in one sequence's state; per token, if the state grows."""
    return math.prod(size for size in spec.shape if isinstance(size, int))


def _bytes(specs: tuple[StateSpec, ...], kind: str) -> int:
    return sum(_values(spec) * _STATE_BITS[spec.dtype] // 8 for spec in specs if spec.kind == kind)
