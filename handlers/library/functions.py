"""Python functions as tools: the signature becomes the JSON schema of the arguments, the docstring the descriptions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

import msgspec

from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.tools import FunctionDefinition, Tool, Tools
from qwonnx.handlers.chat.validation import Strict, of_validation
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.library.errors import AnswerError, in_python_words
from qwonnx.handlers.library.schemas import closed
from qwonnx.runtime.errors import InvalidRequestError

_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*$", re.MULTILINE)
_NEXT_SECTION = re.compile(r"^\S", re.MULTILINE)
_ARGUMENT = re.compile(r"^ +\*{0,2}(\w+)(?: *\([^)]*\))?: *(.*(?:\n {8,}\S.*)*)", re.MULTILINE)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Offered(Strict):
    tools: Tools


def tools_of(given: Iterable[Any]) -> tuple[list[Tool], dict[str, Callable[..., Any]]]:
    """Tools, and the Python functions among them by name.

    Args:
        given: Python functions, and tools as a chat completion has them: {"type": "function", "function": {...}}.

    Raises:
        InvalidRequestError: one is neither, or two have one name.
    """
    functions = {}
    plain: list[Any] = []
    for index, each in enumerate(given):
        if isinstance(each, Mapping):
            plain.append(each)
        elif callable(each):
            definition = definition_of(each, f"tools[{index}]")
            functions[definition.name] = each
            plain.append({"type": "function", "function": msgspec.to_builtins(definition)})
        else:
            message = f"tools[{index}] is {type(each).__name__}: give a Python function or a dictionary"
            raise InvalidRequestError(message, f"tools[{index}]")
    try:
        made = msgspec.convert({"tools": plain}, _Offered).tools
        tool_forms.check_names(made)
    except msgspec.ValidationError as error:
        raise in_python_words(of_validation(error, "tools")) from error
    except ServiceError as error:
        raise in_python_words(error) from error
    return made, functions


def definition_of(function: Callable[..., Any], where: str = "the tool") -> FunctionDefinition:
    """A function's definition. Calls of it follow its schema.

    Args:
        function: its parameters have type hints; one without a hint takes any value.
        where: it was given, for errors.

    Raises:
        InvalidRequestError: it has *args or **kwargs, or a type without a JSON schema.
    """
    name = getattr(function, "__name__", "") or type(function).__name__
    text = inspect.getdoc(function) or ""
    described = _arguments_of(text)
    properties, required = {}, []
    types = _types_of(function, where)
    components: dict[str, Any] = {}
    for each in inspect.signature(function).parameters.values():
        if each.kind in _VARIADIC:
            raise InvalidRequestError(f"{where}: {name} takes *{each.name}: name each parameter", where)
        try:
            (schema,), found = msgspec.json.schema_components([types[each.name]], ref_template="#/$defs/{name}")
        except TypeError as error:
            message = f"{where}: the parameter {each.name} of {name} has a type without a JSON schema: {error}"
            raise InvalidRequestError(message, where) from error
        components |= found
        properties[each.name] = {**schema, **({"description": described[each.name]} if each.name in described else {})}
        if each.default is inspect.Parameter.empty:
            required.append(each.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    if components:
        parameters["$defs"] = components
    return FunctionDefinition(name=name, description=_summary(text) or None, parameters=closed(parameters), strict=True)


def call_with(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a function with arguments from JSON, which become instances of its types.

    Raises:
        AnswerError: an argument is not of its type.
        the errors of the function.
    """
    types = _types_of(function, "the tool")
    given, by_position = {}, []
    try:
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in arguments:
                continue
            value = msgspec.convert(arguments[name], types[name])
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                by_position.append(value)
            else:
                given[name] = value
    except msgspec.ValidationError as error:
        raise AnswerError(f"the argument {name} does not have its type ({error})") from error
    return function(*by_position, **given)


def _types_of(function: Callable[..., Any], where: str) -> dict[str, Any]:
    called = function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__
    try:
        hints = get_type_hints(called, include_extras=True)
    except (NameError, TypeError) as error:
        raise InvalidRequestError(f"{where}: a type hint of {function!r} cannot be read ({error})", where) from error
    return {name: hints.get(name, Any) for name in inspect.signature(function).parameters}


def _summary(text: str) -> str:
    """What a docstring says before its sections, in one paragraph a line."""
    before = re.split(r"^\w[\w ]*:\s*$", text, maxsplit=1, flags=re.MULTILINE)[0]
    return "\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", before.strip()))


def _arguments_of(text: str) -> dict[str, str]:
    """The descriptions in the section "Args:" of a docstring."""
    found = _SECTION.search(text)
    if found is None:
        return {}
    rest = text[found.end() :]
    end = _NEXT_SECTION.search(rest)
    return {name: " ".join(said.split()) for name, said in _ARGUMENT.findall(rest[: end.start()] if end else rest)}
