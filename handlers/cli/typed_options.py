"""The specification of a command that is a typer function, from its signature and its docstring."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo
from typer.utils import get_params_from_function

from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec, prose_and_examples
from qwonnx.handlers.configuration.environment import setting_defaults

# Types of values by the option's name, where the Python type does not tell.
_VALUES = {
    "against": "CHECKPOINT",
    "bandwidth": "BYTES/s|NAME",
    "context": "TOKENS",
    "device": "DEVICE",
    "documents": "FOLDER",
    "fit": "LIMITS",
    "max_kl": "NATS",
    "max_model_len": "TOKENS",
    "max_num_batched_tokens": "TOKENS",
    "max_tokens": "TOKENS",
    "memory": "BYTES",
    "model": "NAME",
    "model_name": "NAME",
    "name": "NAME",
    "revision": "REVISION",
    "seconds": "SECONDS",
    "task": "TASK",
    "translate": "LANGUAGES",
    "url": "URL",
}
_TYPES = {int: "N", float: "NUMBER", Path: "FILE", str: "TEXT"}
_MAX_CHOICES = 32  # characters of choices in the place of a type
HELP = OptionSpec("help", ("-h", "--help"), "Show this help.")


def function_spec(name: str, function: Callable[..., Any]) -> CommandSpec:
    """
    Args:
        name: the command's words, "qwonnx generate".
        function: that typer calls.
    """
    prose, examples = prose_and_examples(getdoc(function) or "")
    params = get_params_from_function(function).values()
    options = [_option(each.name, each.annotation, each.default) for each in params]
    return CommandSpec(name, prose, examples, (*(each for each in options if each is not None), HELP))


def _option(field: str, annotation: Any, info: Any) -> OptionSpec | None:
    """None if it is not for users."""
    if not isinstance(info, OptionInfo | ArgumentInfo) or info.hidden:
        return None
    plain, repeats = _plain(annotation)
    names, negatives = _names(field, info)
    choices = tuple(str(each.value) for each in plain) if isinstance(plain, type) and issubclass(plain, Enum) else ()
    is_argument = isinstance(info, ArgumentInfo)
    value = None if plain is bool and not is_argument else info.metavar or _value(field, plain, choices)
    return OptionSpec(
        field=field,
        names=(info.metavar or field.upper(),) if is_argument else names,
        negatives=negatives,
        value=value,
        help=info.help or "",
        default=_default(field, info.default),
        choices=choices,
        is_argument=is_argument,
        is_required=info.default is ...,
        repeats=repeats,
    )


def _plain(annotation: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    if get_origin(annotation) is UnionType:
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    return annotation, False


def _names(field: str, info: OptionInfo | ArgumentInfo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    declared = info.param_decls or (f"--{field.replace('_', '-')}",)
    parts = [each.partition("/") for each in declared]
    return tuple(part[0] for part in parts), tuple(part[2] for part in parts if part[2])


def _value(field: str, plain: Any, choices: tuple[str, ...]) -> str:
    joined = "|".join(choices)
    if choices:
        return joined if len(joined) <= _MAX_CHOICES else field.upper().replace("_", "-")
    if field in _VALUES:
        return _VALUES[field]
    return "BYTES" if field.endswith("_bytes") else _TYPES.get(plain, "TEXT")


def _default(field: str, default: Any) -> str | None:
    if default in (None, ..., False, ""):
        return setting_defaults().get(field) or None
    return str(default.value if isinstance(default, Enum) else default)
