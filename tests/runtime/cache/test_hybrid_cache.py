"""The account of rows: lengths and bytes, and the calls that it refuses."""

from __future__ import annotations

import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import BuffersFactory, StateBuffers
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.rows import RowMove
from qwonnx.runtime.errors import SettingsError
from tests.runtime.cache.row_content import in_bytes, random_segment, run_rows, writing

pytestmark = pytest.mark.fast

KEY = StateSpec(1, "key", "past.1.key", "present.1.key", "float32", ("batch", 2, "max_model_len", 4))
CONV = StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3))
STATES = (CONV, KEY)


@pytest.fixture
def cache(make_buffers: BuffersFactory) -> HybridCache:
    return HybridCache(STATES, max_num_seqs=3, max_model_len=10, make_buffers=make_buffers)


def step(cache: HybridCache, row: int, past: int, num_tokens: int) -> None:
    """Let a row's sequence grow."""
    run_rows(cache.buffers, row, [past], num_tokens, writing(STATES, past, num_tokens))
    cache.advance(row, num_tokens)


def test_a_sequence_is_begun_grows_moves_and_leaves(cache: HybridCache) -> None:
    cache.begin(2)
    step(cache, 2, 0, 6)
    held = in_bytes(cache.buffers, cache.copy_out(2, 0))
    cache.move(RowMove(2, 0, 6))
    assert cache.snapshot().row_lengths == (6, None, None, None)
    assert in_bytes(cache.buffers, cache.copy_out(0, 0)) == held
    assert cache.copy_out(0, 4).num_tokens == 2
    cache.release(0)
    cache.release(0)  # free already
    assert cache.snapshot().row_lengths == (None,) * 4


def test_a_row_that_was_never_begun_moves_as_such(cache: HybridCache) -> None:
    cache.move(RowMove(1, 0, 0))
    assert cache.snapshot().row_lengths == (None,) * 4


def test_bytes_are_accounted_by_row_and_token(cache: HybridCache) -> None:
    row_bytes, token_bytes = 5 * 3 * 4, 2 * 4 * 4
    assert cache.snapshot().used_bytes == 0
    cache.begin(0)
    step(cache, 0, 0, 4)
    assert cache.snapshot().used_bytes == row_bytes + 4 * token_bytes == cache.segment_bytes(4)
    assert cache.copy_out(0, 0).num_bytes == cache.segment_bytes(4)
    all_rows = 4 * (row_bytes + 10 * token_bytes)
    assert cache.snapshot().reserved_bytes in (all_rows, 2 * all_rows)  # twice if steps write elsewhere than they read
    cache.release(0)
    assert cache.snapshot().used_bytes == 0


def test_what_rows_left_goes_when_others_need_its_bytes(make_buffers: BuffersFactory) -> None:
    cache = HybridCache(STATES, 3, 10, max_bytes=2 * 60 + 12 * 32, make_buffers=make_buffers)
    cache.restore(0, [random_segment(cache.buffers, STATES, 8)])
    cache.restore(1, [random_segment(cache.buffers, STATES, 2)])
    cache.move(RowMove(1, 2, 2))
    cache.release(0)
    assert cache.snapshot().touched_bytes == 3 * 60 + 12 * 32
    cache.prepare(4)
    assert cache.snapshot().touched_bytes == cache.snapshot().used_bytes == 60 + 2 * 32
    assert in_bytes(cache.buffers, cache.copy_out(2, 0)) == in_bytes(
        cache.buffers, random_segment(cache.buffers, STATES, 2)
    )


def test_what_a_row_held_before_goes_and_what_its_sequence_has_stays(make_buffers: BuffersFactory) -> None:
    cache = HybridCache(STATES, 3, 10, max_bytes=60 + 9 * 32, make_buffers=make_buffers)
    cache.restore(0, [random_segment(cache.buffers, STATES, 8)])
    cache.release(0)
    cache.begin(0)
    step(cache, 0, 0, 2)
    held = in_bytes(cache.buffers, cache.copy_out(0, 0))
    assert cache.snapshot().touched_bytes == 60 + 8 * 32
    cache.prepare(2)
    assert cache.snapshot().touched_bytes == 60 + 2 * 32
    assert in_bytes(cache.buffers, cache.copy_out(0, 0)) == held


def test_our_own_mistakes_are_caught(cache: HybridCache) -> None:
    cache.begin(0)
    with pytest.raises(AssertionError, match="in use"):
        cache.begin(0)
    with pytest.raises(AssertionError, match="in use"):
        cache.restore(0, [random_segment(cache.buffers, STATES, 1)])
    with pytest.raises(AssertionError, match="no room"):
        cache.advance(0, 11)
    with pytest.raises(AssertionError, match="free"):
        cache.advance(1, 1)
    with pytest.raises(AssertionError, match="free"):
        cache.copy_out(1, 0)
    with pytest.raises(AssertionError, match="none from 0 on"):
        cache.copy_out(0, 0)
    with pytest.raises(AssertionError, match="in use"):
        cache.move(RowMove(1, 0, 0))


def test_too_large_a_reservation_names_the_settings() -> None:
    def refuse(*_: object) -> StateBuffers:
        raise MemoryError

    with pytest.raises(SettingsError, match="lower max_num_seqs or max_model_len"):
        HybridCache(STATES, max_num_seqs=3, max_model_len=10, make_buffers=refuse)
