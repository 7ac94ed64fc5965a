"""Options for the sampling parameters, made from their declarations in runtime/sampling/params.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any

import typer

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.runtime.sampling.parameter import Kind, Parameter
from qwonnx.runtime.sampling.params import PARAMETERS

_SLOT = "sampling"
_REPEATED = (Kind.TEXTS, Kind.TOKENS, Kind.BIASES)
_TYPES: dict[Kind, Any] = {
    Kind.NUMBER: float,
    Kind.WHOLE: int,
    Kind.SWITCH: bool,
    Kind.TEXTS: list[str],
    Kind.TOKENS: list[int],
    Kind.BIASES: list[str],
}


def with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an option for each sampling parameter in the place of its own parameter `sampling`.

    The command gets the given values by the names of the parameters, as a chat completion has them: a dictionary, which
    is empty without options.

    Raises:
        CommandError: by the command, an option is malformed.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = [each for old in signature.parameters.values() for each in _in_place_of(old)]

    @wraps(command)
    def run(*arguments: Any, **given: Any) -> None:
        asked = {name: given.pop(name, None) for name in PARAMETERS}
        sampling = {name: _value(name, value) for name, value in asked.items() if _is_given(value)}
        command(*arguments, **given, **{_SLOT: sampling})

    del run.__wrapped__  # the help must not look behind it
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _in_place_of(old: inspect.Parameter) -> Iterator[inspect.Parameter]:
    if old.name != _SLOT:
        yield old
        return
    for name, parameter in PARAMETERS.items():
        yield inspect.Parameter(name, old.kind, default=None, annotation=_annotation(name, parameter))


def _annotation(name: str, parameter: Parameter) -> Any:
    repeated = " May be given several times." if parameter.kind in _REPEATED else ""
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=parameter.help + repeated,
        metavar="ID=BIAS" if parameter.kind is Kind.BIASES else None,
    )
    return Annotated[_TYPES[parameter.kind] | None, option]


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _value(name: str, value: Any) -> Any:
    return dict(map(_bias, value)) if PARAMETERS[name].kind is Kind.BIASES else value


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise CommandError(f"--logit-bias is {text!r}: give a token's id and a number, such as 42=-100") from None
