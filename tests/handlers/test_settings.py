"""Server settings from code and from the environment."""

from __future__ import annotations

import pytest

from qwonnx.handlers.app import from_environment
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError

pytestmark = pytest.mark.fast


def test_the_environment_is_read_and_empty_variables_keep_the_defaults() -> None:
    assert ServerSettings.from_environment({}) == ServerSettings()
    given = {
        "QWONNX_MODEL_NAME": "m",
        "QWONNX_API_KEY": "k",
        "QWONNX_MAX_BODY_BYTES": "9 kb",
        "QWONNX_SHUTDOWN_SECONDS": "0.5",
        "QWONNX_MAX_ANSWER_SECONDS": "29",
    }
    assert ServerSettings.from_environment(given) == ServerSettings(
        model_name="m", api_key="k", max_body_bytes=9000, shutdown_seconds=0.5, max_answer_seconds=29.0
    )
    given = {"QWONNX_CAPSULES": "s3://bucket", "QWONNX_CAPSULE_COMPRESSION": "zstd"}
    assert ServerSettings.from_environment(given) == ServerSettings(capsules="s3://bucket", capsule_compression="zstd")
    assert ServerSettings.from_environment({"QWONNX_STRICT_TOOLS": "1"}) == ServerSettings(strict_tools=True)
    empty = {"QWONNX_MODEL_NAME": "", "QWONNX_MAX_BODY_BYTES": " "}
    assert ServerSettings.from_environment(empty) == ServerSettings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QWONNX_MODEL_NAME", "a,,b"),
        ("QWONNX_REASONING_BUDGET", "0"),
        ("QWONNX_EFFORT_BUDGETS", "low"),
        ("QWONNX_EFFORT_BUDGETS", "low=0"),
        ("QWONNX_EFFORT_BUDGETS", "none=5"),
        ("QWONNX_API_KEY", ""),
        ("QWONNX_API_KEY", "two words"),
        ("QWONNX_API_KEY", "clé"),
        ("QWONNX_MAX_BODY_BYTES", "many"),
        ("QWONNX_MAX_BODY_BYTES", "0"),
        ("QWONNX_SHUTDOWN_SECONDS", "nan"),
        ("QWONNX_SHUTDOWN_SECONDS", "-1"),
        ("QWONNX_MAX_ANSWER_SECONDS", "0"),
        ("QWONNX_MAX_ANSWER_SECONDS", "nan"),
        ("QWONNX_CAPSULE_COMPRESSION", "gzip"),
        ("QWONNX_MAX_BODIES_BYTES", "0"),
        ("QWONNX_HEADER_SECONDS", "0"),
        ("QWONNX_BODY_SECONDS", "-1"),
        ("QWONNX_SEND_SECONDS", "nan"),
        ("QWONNX_MAX_CONNECTIONS", "0"),
        ("QWONNX_HOLD_WHILE_LOADING", "-1"),
        ("QWONNX_HOLD_WHILE_LOADING", "1025"),
        ("QWONNX_PLATFORM", "gcp"),
        ("QWONNX_NO_KEY", "maybe"),
        ("QWONNX_MICROVM_HOOKS", "perhaps"),
        ("QWONNX_CONTINUATION_SECRET", "two words"),
        ("QWONNX_CONTINUATION_SECONDS", "0"),
        ("QWONNX_STRICT_TOOLS", "some"),
        ("QWONNX_RECENT_ITEMS_BYTES", "-1"),
        ("QWONNX_KEY_MAX_REQUESTS", "0"),
        ("QWONNX_KEY_TOKENS_PER_MINUTE", "-5"),
        ("QWONNX_MAX_REQUESTS_IN_FLIGHT", "many"),
        ("QWONNX_METRICS_NAMES", "tgi"),
        ("QWONNX_LOG_FORMAT", "xml"),
        ("QWONNX_CORS_ORIGINS", "https://a.example/path"),
        ("QWONNX_TLS_KEY", "alone"),
    ],
)
def test_a_malformed_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as refusal:
        ServerSettings.from_environment({variable: value})
    assert "clé" not in str(refusal.value)
    assert "two words" not in str(refusal.value)


def test_the_key_is_not_in_the_settings_text() -> None:
    assert "k3y" not in repr(ServerSettings(api_key="k3y", continuation_secret="k3y of all instances"))


def test_an_application_from_the_environment_needs_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWONNX_ARTIFACT", raising=False)
    with pytest.raises(SettingsError, match="QWONNX_ARTIFACT"):
        from_environment()
