"""Variables: the documentation has each of them, and one that is none is named."""

from __future__ import annotations

import dataclasses

import pytest

from infra.configuration_table import PAGE, with_table
from qwonnx.handlers.configuration.environment import variables, warnings_about
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.settings import DEFAULT_MAX_MODEL_LEN, RuntimeSettings, read_environment
from tests.handlers.cli.commands import qwonnx

pytestmark = pytest.mark.fast


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "python -m infra.configuration_table writes it anew"
    assert f"{DEFAULT_MAX_MODEL_LEN:,} tokens" in page


def test_every_setting_has_a_variable_with_a_meaning_and_its_default() -> None:
    names = [variable.name for variable in variables()]
    fields = [*dataclasses.fields(ServerSettings), *dataclasses.fields(RuntimeSettings)]
    native = ["QWONNX_NATIVE_LIBRARY", "QWONNX_NATIVE_INSTRUCTIONS", "QWONNX_STARTUP_FILE", "QWONNX_NATIVE_BUILD"]
    others = ["QWONNX_ARTIFACT", "QWONNX_INVOKE_MODE", "QWONNX_CACHE", "QWONNX_CONFIG", *native]
    assert names == [*others, *(f"QWONNX_{field.name.upper()}" for field in fields)]
    assert all(len(variable.meaning) > 20 for variable in variables())
    for settings in (ServerSettings, RuntimeSettings):
        defaults = {variable.name: variable.default for variable in variables()}
        assert read_environment(settings, {name: text for name, text in defaults.items() if text}) == settings()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("QWONNX_MAX_SEQS", "did you mean QWONNX_MAX_NUM_SEQS?"),
        ("QWONNX_THREADS", "did you mean QWONNX_NUM_THREADS?"),
        ("QWONNX_XYZ", "docs/configuration.md lists all"),
        ("QWONNX_", "docs/configuration.md lists all"),
    ],
)
def test_an_unknown_one_is_named_and_its_value_is_not(name: str, said: str) -> None:
    (warning,) = warnings_about({name: "S3CRET", "QWONNX_NUM_THREADS": "2", "QWONNX_TEST_X": "1", "OTHER": ""})
    assert warning.startswith(f"{name} is not a variable")
    assert said in warning
    assert "S3CRET" not in warning


def test_a_command_warns_and_goes_on() -> None:
    result = qwonnx("--version", QWONNX_THREADS="2")
    assert result.returncode == 0
    assert result.stderr == (
        "qwonnx: warning: QWONNX_THREADS is not a variable of qwonnx and has no effect: "
        "did you mean QWONNX_NUM_THREADS?\n"
    )
