"""Memory of a device that serves: weights, states and work buffers lie there, and nothing else grows with the model.

The target knows what its kernels take. docs/plan.md has the formulas, and what was counted without a device. The memory
of a driver and of the kernels' code is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import tied_weights
from qwonnx.export.planning.resident_memory import Serving, held_values
from qwonnx.export.planning.states import StateSizes
from qwonnx.export.planning.stored_model import StoredModel
from qwonnx.runtime.scheduling.row_budget import SHARE_OF_DEVICE

# The context of a process on a card, the loaded code of kernels, and cuBLAS's workspace: assumed.
_DRIVER_BYTES = 600_000_000

_FLOAT, _HALF = 4, 2
# Buffers of a step's activations do not fit each other: the arena holds up to a quarter more. Keys and values that are
# expanded for one layer are held twice, as in cuda_memory.py.
_ARENA_FACTOR, _EXPANDED_CACHES = 1.25, 2


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Memory of a device, in bytes, by purpose. loading is what is taken, and given back, before there are rows."""

    context: int
    driver: int
    weights: int
    kv: int
    states: int
    spare_row: int
    logits: int
    work: int
    loading: int

    @property
    def rows(self) -> int:
        """What is reserved for sequences."""
        return self.kv + self.states + self.spare_row

    @property
    def unused(self) -> int:
        """Memory that is free in the end: `qwonnx serve` leaves some beside the rows, and loading may take more."""
        beside_weights = max(round(self.rows / SHARE_OF_DEVICE), self.loading)
        return max(0, beside_weights - self.rows - self.logits - self.work)

    @property
    def required(self) -> int:
        """The memory that a device must have."""
        return self.driver + self.weights + self.rows + self.logits + self.work + self.unused


def device_use(config: ModelConfig, model: StoredModel, states: StateSizes, serving: Serving) -> DeviceUse:
    """Memory of a device whose rows have room for `serving.context` tokens: it is reserved when the server starts."""
    kv = serving.context * states.kv_bytes_per_token(serving.kv)
    return DeviceUse(
        context=serving.context,
        driver=_DRIVER_BYTES,
        weights=_weights(config, model),
        kv=serving.sequences * kv,
        states=serving.sequences * states.fixed_bytes,
        spare_row=kv + states.fixed_bytes,
        # As computed, in float32, and the copy that goes to the host.
        logits=(_HALF + 2 * _FLOAT) * config.vocab_size * serving.sequences,
        work=_work(config, serving) + model.loaded.scratch,
        loading=model.loaded.loading,
    )


def _weights(config: ModelConfig, model: StoredModel) -> int:
    """Codes of a tied head are loaded twice: its kernel takes them in another shape than the embedding's."""
    tied = tied_weights(config).values()
    twice = [item for item in model.weights if item.name in tied and item.storage.is_quantized]
    return model.num_bytes + sum(item.num_code_bytes for item in twice) + model.choice.target.constant_bytes(config)


def _work(config: ModelConfig, serving: Serving) -> int:
    """Activations of the largest step, and one layer's keys and values of all rows if they must be expanded."""
    tokens = max(serving.sequences, min(serving.chunk_tokens, serving.context))
    routed = 2 * config.num_experts_per_tok * (config.hidden_size + 3 * config.moe_intermediate_size)
    held = int(_ARENA_FACTOR * held_values(config)) + (routed if config.num_experts else 0)
    cached = 2 * config.num_key_value_heads * config.head_dim if serving.kv.is_quantized else 0
    return _HALF * (tokens * held + _EXPANDED_CACHES * serving.sequences * serving.context * cached)
