"""`optimum-cli export qwonnx`: the options and the outcome of `qwonnx export`, with optimum's arguments."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.export.base import ExportCommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand

from qwonnx.handlers.cli import optimum_export
from qwonnx.handlers.cli.export import export
from qwonnx.handlers.cli.optimum_export import QwonnxExportCommand, export_options
from tests.handlers.cli.commands import qwonnx

pytestmark = pytest.mark.fast


def parser() -> argparse.ArgumentParser:
    """optimum's parser with our command in it, put together as optimum-cli does."""
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    register_optimum_cli_subcommand(ExportCommand, parent_command=root)
    (parent,) = root.registered_subcommands
    register_optimum_cli_subcommand(QwonnxExportCommand, parent_command=parent)
    found: argparse.ArgumentParser = root.parser
    return found


def run(*arguments: object) -> None:
    parsed = parser().parse_args(["export", "qwonnx", *map(str, arguments)])
    parsed.func(parsed).run()


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    """The arguments with which `qwonnx export` is called."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(optimum_export, "export", _Recorder(seen))
    run(*arguments)
    return seen


class _Recorder:
    """Replaces `qwonnx export`: it has the same signature, and only records its arguments, or raises."""

    def __init__(self, seen: dict[str, Any], error: type[BaseException] | None = None) -> None:
        self._seen = seen
        self._error = error
        self.__signature__ = inspect.signature(export)
        self.__annotations__ = export.__annotations__
        self.__wrapped__ = export  # the names in the annotations are looked up here

    def __call__(self, **arguments: Any) -> None:
        self._seen.update(arguments)
        if self._error is not None:
            raise self._error


def test_what_is_not_given_has_the_defaults_of_qwonnx_export(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(export).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    seen = called(monkeypatch, "-m", "a/b", "out")
    assert seen == {"checkpoint": "a/b", "out": Path("out"), **defaults}
    assert [type(seen[name]) for name in defaults] == [type(value) for value in defaults.values()]


def test_every_option_of_qwonnx_export_is_there_with_its_help() -> None:
    ours = set(re.findall(r"--[a-z][a-z-]*", qwonnx("export", "--help").stdout)) - {"--help"}
    assert {option.flag for option in export_options()} == ours
    shown = " ".join(parser_help().split())
    for option in export_options():
        assert " ".join(option.settings["help"].replace("%%", "%").split()) in shown


def test_the_help_teaches() -> None:
    shown = parser_help()
    for text in ("-m MODEL, --model MODEL", "required arguments", "optimum-cli export qwonnx -m ", "qwonnx serve "):
        assert text in shown


def parser_help() -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        parser().parse_args(["export", "qwonnx", "--help"])
    assert ended.value.code == 0
    return output.getvalue()


def test_options_arrive_in_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--target portable --weights int8 --weight-block-size 64 --activations float32 --recipe r.toml --force"
    seen = called(monkeypatch, "--model", "m", *options.split(), "--revision", "main", "--task", "auto", "out")
    assert (seen["target"].name, seen["weights"].name, seen["activations"].name) == ("PORTABLE", "INT8", "FLOAT32")
    assert (seen["weight_block_size"], seen["recipe"], seen["force"], seen["revision"]) == (64, "r.toml", True, "main")


class Colour(StrEnum):
    RED = "red"


def future_export(
    checkpoint: Annotated[str, typer.Argument()],
    out: Annotated[Path, typer.Argument()],
    memory: Annotated[int | None, typer.Option("--memory", min=1, max=64, help="At most 100 %.", metavar="GB")] = None,
    share: Annotated[float, typer.Option("-s", "--share", parser=lambda text: float(text) / 100)] = 0.5,
    colour: Annotated[Colour, typer.Option()] = Colour.RED,
) -> None: ...


def test_options_that_qwonnx_export_gets_later_follow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optimum_export, "export", future_export)
    command = parser()
    assert command.parse_args(["export", "qwonnx", "-m", "x", "--memory", "3", "--share", "20", "out"]).share == 0.2
    for wrong in ("0", "65", "much"):
        with pytest.raises(SystemExit):
            command.parse_args(["export", "qwonnx", "-m", "x", "--memory", wrong, "out"])
        assert "--memory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.parse_args(["export", "qwonnx", "--help"])
    assert "--memory GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["out"], ["-m", "x"], ["-m", "x", "--weights", "int5", "out"], ["-m", "x", "--task", "fill-mask", "out"]],
)
def test_what_the_parser_refuses_has_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("optimum-cli export qwonnx: error: ")


def test_what_the_exporter_refuses_is_one_line_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("-m", tmp_path / "nothing", tmp_path / "out")
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("qwonnx: error: ")
    assert errors.count("\n") == 1


def test_ctrl_c_has_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimum_export, "export", _Recorder({}, KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        run("-m", "x", "out")
    assert ended.value.code == 130
