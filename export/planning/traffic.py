"""Bytes that a step of decoding reads, and what a memory of some bandwidth allows: the roofline of decoding.

Counted once each: codes and scales of every projection, those of the experts that the step's tokens choose, a row of
the embedding, the keys and values of every position, the fixed states. Decoding reads far more than it computes, so no
engine on this memory is faster, but for what its caches hold; kernels that read something twice are slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import EMBEDDING, Role, tied_weights
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.states import StateSizes
from qwonnx.export.weight_files.weight_item import WeightItem


@dataclass(frozen=True, slots=True)
class DecodeTraffic:
    """Bytes read by one step, which gives one token to each of its sequences."""

    sequences: int
    weights: int
    kv: int
    states: int

    @property
    def bytes_per_step(self) -> int:
        return self.weights + self.kv + self.states

    @property
    def bytes_per_token(self) -> int:
        return self.bytes_per_step // self.sequences

    def tokens_per_second(self, bytes_per_second: int) -> float:
        """Of all sequences together, at most."""
        return self.sequences * bytes_per_second / self.bytes_per_step


def active_parameters(config: ModelConfig, weights: Sequence[WeightItem]) -> int:
    """Parameters that a token multiplies: chosen experts only, the head, and no embedding but as a tied head."""
    return round(sum(_share(config, weight, 1) * weight.num_parameters for weight in weights))


def decode_traffic(
    config: ModelConfig,
    weights: Sequence[WeightItem],
    states: StateSizes,
    *,
    context: int,
    sequences: int,
    kv: KvType,
) -> DecodeTraffic:
    """What a step reads that gives each of some sequences of `context` tokens one more."""
    read = sum(_share(config, weight, sequences) * weight.num_bytes for weight in weights)
    rows = sum(sequences * weight.num_bytes // weight.num_rows for weight in weights if weight.role is Role.EMBEDDING)
    return DecodeTraffic(
        sequences=sequences,
        weights=round(read) + rows,
        kv=sequences * context * states.kv_bytes_per_token(kv),
        states=sequences * states.fixed_bytes,
    )


def _share(config: ModelConfig, weight: WeightItem, sequences: int) -> float:
    """Which part of a weight a step multiplies.

    Of E experts, B sequences that choose k each use E * (1 - (1 - k / E) ** B) if they choose alike and independently.
    """
    if weight.role is Role.EXPERTS:
        return 1 - (1 - config.num_experts_per_tok / config.num_experts) ** sequences
    if weight.role is Role.EMBEDDING:
        return 1.0 if EMBEDDING in tied_weights(config).values() else 0.0
    return 1.0
