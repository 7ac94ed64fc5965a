"""`optimum-cli export qwonnx`: `qwonnx export` as a command of optimum.

    optimum-cli export qwonnx -m CHECKPOINT [options] OUTPUT

The options come from the signature of `qwonnx export`, so the two cannot differ; this module adds optimum's conventions
and calls the same function. optimum builds the parsers of all commands at each start, so this module imports little.
"""

from __future__ import annotations

import argparse
import enum
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from typer.models import OptionInfo

from qwonnx.export.optimum_entry import TASKS
from qwonnx.handlers.cli.export import export
from qwonnx.handlers.cli.failures import one_line_errors

# The parameters of `qwonnx export` for which optimum has its own arguments.
_MODEL, _OUTPUT = "checkpoint", "out"

_DESCRIPTION = """\
Export a Qwen 3.5 checkpoint to a folder of ONNX graphs that qwonnx, or ONNX Runtime alone, can run.
Weights are streamed, so memory stays small for models of any size. An interrupted export can be resumed."""

_EXAMPLES = """\
examples:

  optimum-cli export qwonnx -m Qwen/Qwen3.5-35B-A3B qwen-int4/

  optimum-cli export qwonnx -m ./Qwen3.5-0.8B --weights int8 --weight-block-size 64 qwen-small/

  optimum-cli export qwonnx -m ./checkpoint --weights fp32 --target portable exact/

then:

  qwonnx generate qwen-int4/ --chat Hello
  qwonnx serve qwen-int4/"""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `qwonnx export`: its flag, its parameter, and argparse's keywords."""

    flag: str
    parameter: str
    settings: dict[str, Any]


class QwonnxExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """The command in optimum's form. Exit status: 0, 2 (user's error), 130 (Ctrl-C)."""

    COMMAND = CommandInfo(name="qwonnx", help="Export a Qwen 3.5 checkpoint to an artifact of qwonnx.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        required = parser.add_argument_group("required arguments")
        required.add_argument(
            "-m", "--model", required=True, help="a folder in Hugging Face layout, or a repo id of huggingface.co"
        )
        required.add_argument("output", help="the artifact's folder, which must not exist yet")
        optional = parser.add_argument_group("options")
        optional.add_argument(
            "--task", choices=TASKS, default="auto", help="always text generation with its states (default: auto)"
        )
        for option in export_options():
            optional.add_argument(option.flag, dest=option.parameter, **option.settings)

    def run(self) -> None:
        given = {option.parameter: getattr(self.args, option.parameter) for option in export_options()}
        given |= {_MODEL: self.args.model, _OUTPUT: self.args.output}
        types = _types()
        arguments: dict[str, Any] = {
            name: value if value is None else types[name](value) for name, value in given.items()
        }
        try:
            with one_line_errors():
                export(**arguments)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def export_options() -> Iterator[Option]:
    """All options of `qwonnx export`, in order."""
    hints, types = get_type_hints(export, include_extras=True), _types()
    for name, parameter in inspect.signature(export).parameters.items():
        if name in (_MODEL, _OUTPUT):
            continue
        (info,) = (extra for extra in hints[name].__metadata__ if isinstance(extra, OptionInfo))
        (flag,) = [text for text in info.param_decls or () if text.startswith("--")] or ["--" + name.replace("_", "-")]
        yield Option(flag, name, _settings(types[name], info, parameter.default))


def _types() -> dict[str, type]:
    """The type of every parameter of `qwonnx export`, without `| None`; it converts argparse's values."""
    hints = get_type_hints(export)
    hints.pop("return")
    return {name: next((part for part in get_args(hint) if part is not NoneType), hint) for name, hint in hints.items()}


def _settings(kind: type, info: OptionInfo, default: Any) -> dict[str, Any]:
    """argparse's keywords for an option."""
    text = (info.help or "").replace("%", "%%")  # argparse expands % in a help text
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return {"action": "append", "help": text, "type": _converter(item, info), "metavar": info.metavar}
    assert isinstance(kind, type), f"options of type {kind} have no counterpart here yet"
    if kind is bool:
        assert default is False, "a switch that is on by default needs a name for off"
        return {"action": "store_true", "help": text}
    shown = default.value if isinstance(default, enum.Enum) else default
    settings = {"default": shown, "help": text if default is None else f"{text} (default: {shown})"}
    if issubclass(kind, enum.Enum):
        return {**settings, "choices": [member.value for member in kind]}
    return {**settings, "type": _converter(kind, info), "metavar": info.metavar}


def _converter(kind: type, info: OptionInfo) -> Callable[[str], Any]:
    """Convert a text to a value, within the option's bounds."""

    def convert(text: str) -> Any:
        value = (info.parser or kind)(text)
        if (info.min is not None and value < info.min) or (info.max is not None and value > info.max):
            raise argparse.ArgumentTypeError(f"{text} is not in the range from {info.min} to {info.max}")
        return value

    return convert
