"""Options override variables, and variables override defaults."""

from __future__ import annotations

import pytest

from qwonnx.handlers.cli.engine_options import runtime_settings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import RuntimeSettings

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RuntimeSettings.__dataclass_fields__:
        monkeypatch.delenv(f"QWONNX_{name.upper()}", raising=False)


def test_nothing_given_is_the_default() -> None:
    assert runtime_settings() == runtime_settings(num_threads=None, max_num_seqs=None) == RuntimeSettings()


def test_an_option_counts_more_than_a_variable_and_a_variable_more_than_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QWONNX_MAX_NUM_SEQS", "3")
    monkeypatch.setenv("QWONNX_NUM_THREADS", "5")
    assert runtime_settings(num_threads=2) == RuntimeSettings(num_threads=2, max_num_seqs=3)


def test_an_option_of_zero_is_given() -> None:
    assert runtime_settings(prefix_cache_bytes=0).prefix_cache_bytes == 0


@pytest.mark.parametrize("name", ["num_threads", "max_num_seqs"])
def test_an_impossible_option_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is 0"):
        runtime_settings(**{name: 0})  # type: ignore[arg-type]


def test_a_malformed_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWONNX_NUM_THREADS", "many")
    with pytest.raises(SettingsError, match="QWONNX_NUM_THREADS"):
        runtime_settings(num_threads=2)
