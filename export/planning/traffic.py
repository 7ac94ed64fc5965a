"""Bytes that a decoding step reads, and the speed that a memory bandwidth allows: the roofline of decoding.

Counted once each: codes and scales of every projection, those of the experts that the step's tokens choose, a row of
the embedding, the keys and values of every position, the fixed states. The memory limits decoding, so this is an upper
bound of speed, except for data in processor caches. Kernels that read data twice are slower.
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
        """The upper bound for all sequences together."""
        return self.sequences * bytes_per_second / self.bytes_per_step


def active_parameters(config: ModelConfig, weights: Sequence[WeightItem]) -> int:
    """Parameters that a token multiplies: only the chosen experts, the head, and the embedding only as a tied head."""
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
    """Bytes read by a step that gives one more token to each sequence of `context` tokens."""
    read = sum(_share(config, weight, sequences) * weight.num_bytes for weight in weights)
    rows = sum(sequences * weight.num_bytes // weight.num_rows for weight in weights if weight.role is Role.EMBEDDING)
    return DecodeTraffic(
        sequences=sequences,
        weights=round(read) + rows,
        kv=sequences * context * states.kv_bytes_per_token(kv),
        states=sequences * states.fixed_bytes,
    )


def _share(config: ModelConfig, weight: WeightItem, sequences: int) -> float:
    """The share of a weight that a step multiplies.

    B sequences that choose k of E experts each use E * (1 - (1 - k / E) ** B) experts, if they choose uniformly and
    independently.
    """
    if weight.role is Role.EXPERTS:
        return 1 - (1 - config.num_experts_per_tok / config.num_experts) ** sequences
    if weight.role is Role.EMBEDDING:
        return 1.0 if EMBEDDING in tied_weights(config).values() else 0.0
    return 1.0
