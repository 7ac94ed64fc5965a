"""Every sampling parameter is an option, and the command gets what was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from qwonnx.handlers.cli.command_line import spec_of
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.sampling_options import with_sampling_options
from qwonnx.runtime.sampling.params import PARAMETERS

pytestmark = pytest.mark.fast

_got: list[Mapping[str, Any]] = []


@with_sampling_options
def command(
    artifact: Annotated[str, typer.Argument()] = "",
    sampling: Mapping[str, Any] | None = None,
    other: Annotated[int, typer.Option()] = 1,
) -> None:
    _got.append(sampling or {})


def run(*words: str) -> Mapping[str, Any]:
    app = typer.Typer()
    app.command()(command)
    _got.clear()
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return _got[0]


def test_what_is_given_is_passed_on_and_nothing_else() -> None:
    assert run() == {}
    assert run("x", "--temperature", "0", "--other", "2") == {"temperature": 0.0}
    words = ["--stop", "a", "--stop", "b", "--stop-token-ids", "5", "--ignore-eos", "--min-p", "0.1", "--top-k", "-1"]
    given = run(*words, "--logit-bias", "7=-100", "--logit-bias", "8=1.5", "--repetition-penalty", "1.1", "--seed", "3")
    assert given == {
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "min_p": 0.1,
        "top_k": -1,
        "logit_bias": {7: -100.0, 8: 1.5},
        "repetition_penalty": 1.1,
        "seed": 3,
    }


@pytest.mark.parametrize("text", ["7", "a=1", "7=b", "=", ""])
def test_a_bias_is_a_token_and_a_number(text: str) -> None:
    with pytest.raises(CommandError, match="give a token's id and a number"):
        run("--logit-bias", text)


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_the_commands_have_an_option_for_each_parameter(name: str) -> None:
    assert set(PARAMETERS) <= {option.field for option in spec_of(name).options}
