"""Errors that users can fix are one line and status 2; our bugs keep their traceback."""

from __future__ import annotations

import pytest

from qwonnx.export.errors import CheckpointError, EvaluationError, PlanError
from qwonnx.handlers.cli.failures import CommandError, one_line_errors
from qwonnx.runtime.artifact.manifest import ArtifactError
from qwonnx.runtime.errors import InvalidRequestError, SettingsError
from qwonnx.runtime.install import how_to_install

pytestmark = pytest.mark.fast


def _missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CommandError("a: give b"), "a: give b"),
        (SettingsError("a"), "a"),
        (InvalidRequestError("a"), "a"),
        (ArtifactError("a"), "a"),
        (CheckpointError("a"), "a"),
        (EvaluationError("a"), "a"),
        (PlanError("a"), "a"),
        (CommandError("a\n  b\tc"), "a b c"),
        (MemoryError(), "there is not enough memory: close other programs, or use less of it"),
        (_missing("torch"), f"torch is not installed: {how_to_install('export')}"),
        (_missing("transformers.models"), f"transformers is not installed: {how_to_install('export')}"),
        (
            _missing("onnxruntime"),
            f"onnxruntime is not installed: {how_to_install('cpu')}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_a_users_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"qwonnx: error: {line}\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("inside"), ValueError("x"), _missing("our_own"), OSError("x")])
def test_a_bug_is_let_through(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised, one_line_errors():
        raise error
    assert raised.value is error
    assert capsys.readouterr() == ("", "")


def test_what_succeeds_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with one_line_errors():
        pass
    assert capsys.readouterr() == ("", "")
