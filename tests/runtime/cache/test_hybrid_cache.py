from __future__ import annotations

import numpy as np
import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache import hybrid_cache as module
from qwonnx.runtime.cache.hybrid_cache import HybridCache, RowMove, row_pointer
from qwonnx.runtime.errors import SettingsError

KEY = StateSpec(1, "key", "past.1.key", "present.1.key", "float32", ("batch", 2, "max_model_len", 4))
CONV = StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3))


def _cache() -> HybridCache:
    return HybridCache((CONV, KEY), max_num_seqs=3, max_model_len=10)


def test_buffers_have_the_manifests_shapes_with_one_spare_row_and_start_aligned() -> None:
    cache = _cache()
    assert cache.buffers["past.1.key"].shape == (4, 2, 10, 4)
    assert cache.buffers["past.0.conv"].shape == (4, 5, 3)
    for buffer in cache.buffers.values():
        assert buffer.ctypes.data % 64 == 0
        assert row_pointer(buffer, 2) == buffer[2].ctypes.data


def test_a_new_sequence_starts_from_zeros_whatever_was_in_its_row() -> None:
    cache = _cache()
    cache.buffers["past.0.conv"][1] = 7
    cache.begin(1)
    assert not cache.buffers["past.0.conv"][1].any()


def test_a_move_carries_what_a_sequence_has_and_frees_its_old_row() -> None:
    cache = _cache()
    cache.begin(2)
    cache.advance(2, 6)
    cache.buffers["past.1.key"][2] = 3
    cache.buffers["past.0.conv"][2] = 4
    cache.move(RowMove(2, 0, 6))
    assert (cache.buffers["past.1.key"][0, :, :6] == 3).all()
    assert not cache.buffers["past.1.key"][0, :, 6:].any()  # untouched pages stay untouched
    assert (cache.buffers["past.0.conv"][0] == 4).all()
    assert cache.snapshot().row_lengths == (6, None, None, None)


def test_bytes_are_accounted_by_row_and_token() -> None:
    cache = _cache()
    row_bytes, token_bytes = 5 * 3 * 4, 2 * 4 * 4
    assert cache.snapshot().used_bytes == 0
    cache.begin(0)
    cache.advance(0, 4)
    assert cache.snapshot().used_bytes == row_bytes + 4 * token_bytes
    assert cache.snapshot().reserved_bytes == 4 * (row_bytes + 10 * token_bytes)
    cache.release(0)
    assert cache.snapshot().used_bytes == 0


def test_our_own_mistakes_are_caught() -> None:
    cache = _cache()
    cache.begin(0)
    with pytest.raises(AssertionError, match="in use"):
        cache.begin(0)
    with pytest.raises(AssertionError, match="no room"):
        cache.advance(0, 11)
    with pytest.raises(AssertionError, match="free"):
        cache.advance(1, 1)
    with pytest.raises(AssertionError, match="in use"):
        cache.move(RowMove(1, 0, 0))


def test_too_large_a_reservation_names_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_reserve", refuse)
    with pytest.raises(SettingsError, match="lower max_num_seqs or max_model_len"):
        _cache()


def test_reserving_touches_no_memory() -> None:
    large = StateSpec(1, "key", "k", "p", "float32", ("batch", 8, "max_model_len", 256))
    cache = HybridCache([large], max_num_seqs=8, max_model_len=32_768)  # 2.4 GB of address space
    assert cache.snapshot().reserved_bytes > 2 << 30
    assert np.all(cache.buffers["k"][8, 0, :4] == 0)
