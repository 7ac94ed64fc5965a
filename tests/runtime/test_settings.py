from __future__ import annotations

import pytest

from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import RuntimeSettings

pytestmark = pytest.mark.fast


def test_an_empty_environment_gives_the_defaults() -> None:
    assert RuntimeSettings.from_environment({}) == RuntimeSettings()
    assert RuntimeSettings.from_environment({"QWONNX_NUM_THREADS": " "}) == RuntimeSettings()


def test_every_field_can_come_from_the_environment() -> None:
    settings = RuntimeSettings.from_environment(
        {
            "QWONNX_DEVICE": "cuda:1",
            "QWONNX_NUM_THREADS": "3",
            "QWONNX_PROVIDERS": "CUDAExecutionProvider, CPUExecutionProvider",
            "QWONNX_SESSION_OPTIONS": "ep.cuda.some_option=1, session.other=",
            "QWONNX_MAX_NUM_SEQS": "2",
            "QWONNX_MAX_NUM_BATCHED_TOKENS": "64",
            "QWONNX_MAX_MODEL_LEN": "1000",
            "QWONNX_MAX_QUEUED_REQUESTS": "5",
            "QWONNX_CACHE_BYTES": "1GB",
            "QWONNX_MEMORY_BYTES": "2GB",
            "QWONNX_PREFIX_CACHE_BYTES": "8 mib",
            "QWONNX_SPIN": "off",
            "QWONNX_LOG_SEVERITY": "0",
            "QWONNX_ALLOW_SPECIAL_TOKENS": "on",
            "QWONNX_KERNELS": "native",
            "QWONNX_WEIGHTS_RESIDENCY": "map",
            "QWONNX_STAGES": "10.0.0.2:7000, unix:/run/stage-3",
            "QWONNX_ADAPTERS": "legal=/adapters/legal, support=s3://adapters/support#sha256=00",
            "QWONNX_MAX_ADAPTERS": "3",
            "QWONNX_MAX_ADAPTER_RANK": "32",
            "QWONNX_ADAPTER_BYTES": "64MiB",
            "QWONNX_STAGE_KEY": "a key of stages ",
        }
    )
    assert settings == RuntimeSettings(
        "cuda:1",
        3,
        ("CUDAExecutionProvider", "CPUExecutionProvider"),
        ("ep.cuda.some_option=1", "session.other="),
        2,
        64,
        1000,
        5,
        10**9,
        2 * 10**9,
        8 << 20,
        False,
        0,
        True,
        "native",
        "map",
        ("legal=/adapters/legal", "support=s3://adapters/support#sha256=00"),
        3,
        32,
        64 << 20,
        ("10.0.0.2:7000", "unix:/run/stage-3"),
        "a key of stages ",
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QWONNX_NUM_THREADS", "two"),
        ("QWONNX_NUM_THREADS", "0"),
        ("QWONNX_SESSION_OPTIONS", "ep.cuda.some_option"),
        ("QWONNX_SESSION_OPTIONS", "a=1 2"),
        ("QWONNX_MAX_MODEL_LEN", "1"),
        ("QWONNX_SPIN", "maybe"),
        ("QWONNX_PROVIDERS", "CPUExecutionProvider,,"),
        ("QWONNX_LOG_SEVERITY", "5"),
        ("QWONNX_CACHE_BYTES", "8,5GB"),
        ("QWONNX_CACHE_BYTES", "0"),
        ("QWONNX_PREFIX_CACHE_BYTES", "much"),
        ("QWONNX_NUM_THREADS", "2.5"),
    ],
)
def test_a_malformed_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        RuntimeSettings.from_environment({variable: value})


def test_settings_from_code_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="max_num_seqs is 0: give at least 1"):
        RuntimeSettings(max_num_seqs=0)
    with pytest.raises(SettingsError, match="providers is empty"):
        RuntimeSettings(providers=())


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("No", False)])
def test_a_switch_is_said_in_any_of_the_usual_words(text: str, value: bool) -> None:
    assert RuntimeSettings.from_environment({"QWONNX_SPIN": text}).spin is value


def test_nothing_is_kept_of_prefixes_where_the_variable_says_so() -> None:
    for text in ("0", "0B"):
        assert RuntimeSettings.from_environment({"QWONNX_PREFIX_CACHE_BYTES": text}).prefix_cache_bytes == 0
