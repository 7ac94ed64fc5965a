"""Bytes that a decoding step reads."""

from __future__ import annotations

import pytest

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.checkpoint.weight_names import Role
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.decoder_weights import planned_weights
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.traffic import DecodeTraffic, decode_traffic
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

pytestmark = pytest.mark.fast


def traffic(size: str, sequences: int = 1, context: int = 1000) -> DecodeTraffic:
    config = parse_config(PUBLISHED[size].config())
    stored = planned_weights(config, Recipe.preset("int4"), choose_target())
    return decode_traffic(config, stored, state_sizes(config), context=context, sequences=sequences, kv=KvType.FLOAT32)


def test_a_dense_step_reads_all_weights_but_the_embedding_of_which_it_reads_a_row() -> None:
    config = parse_config(PUBLISHED["9B"].config())
    stored = planned_weights(config, Recipe.preset("int4"), choose_target())
    embedding = next(weight for weight in stored if weight.role is Role.EMBEDDING)
    row = embedding.num_bytes // embedding.num_rows
    assert traffic("9B").weights == sum(weight.num_bytes for weight in stored) - embedding.num_bytes + row


def test_keys_values_and_states_are_read_once_for_each_sequence() -> None:
    one, four = traffic("9B"), traffic("9B", sequences=4)
    states = state_sizes(parse_config(PUBLISHED["9B"].config()))
    assert one.kv == 1000 * states.kv_bytes_per_token(KvType.FLOAT32)
    assert (four.kv, four.states) == (4 * one.kv, 4 * one.states)
    assert four.bytes_per_token < one.bytes_per_token


def test_sequences_share_experts_by_chance() -> None:
    one, two, many = (traffic("35B-A3B", sequences).weights for sequences in (1, 2, 1000))
    all_weights = traffic("35B-A3B", 10**6).weights
    assert one < two < 2 * one
    assert many < all_weights


def test_the_roofline_is_bandwidth_over_bytes() -> None:
    read = traffic("35B-A3B", sequences=3)
    assert read.tokens_per_second(read.bytes_per_step) == pytest.approx(3.0)
