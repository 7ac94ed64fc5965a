from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.machine import free_memory_bytes
from qwonnx.runtime.scheduling import row_budget
from qwonnx.runtime.scheduling.row_budget import settle
from qwonnx.runtime.settings import RuntimeSettings

pytestmark = pytest.mark.fast

STATES = (
    StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3)),
    StateSpec(1, "key", "past.1.key", "present.1.key", "float16", ("batch", 2, "max_model_len", 4)),
)
PER_ROW, PER_TOKEN = 60, 16


def test_a_budget_that_is_given_shortens_the_default_length() -> None:
    budget, length = settle(STATES, RuntimeSettings(cache_bytes=PER_ROW + 10 * PER_TOKEN + 7), 100)
    assert (budget.bytes_per_row, budget.bytes_per_token, length) == (PER_ROW, PER_TOKEN, 10)
    assert budget.fits([10])
    assert not budget.fits([10, 0])


def test_a_length_that_is_given_must_fit() -> None:
    settings = RuntimeSettings(cache_bytes=PER_ROW + 10 * PER_TOKEN, max_model_len=11)
    with pytest.raises(SettingsError, match=f"11 tokens takes {PER_ROW + 11 * PER_TOKEN}: give more, or lower"):
        settle(STATES, settings, 11)
    with pytest.raises(SettingsError, match="2 tokens"):
        settle(STATES, RuntimeSettings(cache_bytes=PER_ROW + PER_TOKEN), 100)


def test_by_default_it_is_half_of_what_is_free_and_one_whole_sequence_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_budget, "free_memory_bytes", lambda: 10_000)
    assert settle(STATES, RuntimeSettings(), 100)[0].max_bytes == 5_000
    budget, length = settle(STATES, RuntimeSettings(), 1000)
    assert (budget.max_tokens, length) == (1000, 1000)
    monkeypatch.setattr(row_budget, "free_memory_bytes", lambda: None)
    assert settle(STATES, RuntimeSettings(), 100)[0].max_bytes > 1 << 60


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("3000000", 3_000_000 - 1_000_000 + 400_000), ("max", 9_000 * 1024), ("999999999999", 9_000 * 1024)],
)
def test_free_memory_is_the_containers_or_the_machines(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 400000\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  10000 kB\nMemFree:  100 kB\nMemAvailable:   9000 kB\n")
    assert free_memory_bytes(tmp_path, meminfo) == expected


def test_a_system_that_does_not_say_has_no_number(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path, tmp_path / "meminfo") is None


def test_a_limit_of_the_process_bounds_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_budget, "free_memory_bytes", lambda: 1 << 40)
    unlimited, _ = settle(STATES, RuntimeSettings(), 64)
    limited, _ = settle(STATES, RuntimeSettings(), 64, 1 << 30)
    assert (unlimited.max_bytes, limited.max_bytes) == (1 << 39, 1 << 29)
