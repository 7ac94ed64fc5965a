"""The tools of a request, as the model is told of them, and how its calls are named back.

| type | what the model is told |
|---|---|
| function | the function |
| custom | a function with one argument, `input`, a string; a grammar becomes part of its description |
| namespace | its functions and custom tools, each named NAMESPACE__NAME |
| web_search and other hosted tools | nothing: they are ignored and named, or refused |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from qwonnx.handlers import errors
from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.tools import MAX_TOOLS, FunctionDefinition, FunctionName, Tool
from qwonnx.handlers.chat.validation import Strict, of_validation
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.responses.raw_json import decoded, inside

CUSTOM_ARGUMENT = "input"
_SEPARATOR = "__"
_MAX_NAME = 128

# Tools that OpenAI's servers or clients run by themselves, without a schema that a model could be told.
HOSTED = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)


class _Callable(Strict):
    name: FunctionName
    description: str | None = None
    # Without effect.
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class FunctionTool(_Callable, tag_field="type", tag="function"):
    """parameters: the JSON schema of the arguments. strict: a call must be valid by it."""

    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None  # without effect


class GrammarFormat(Strict, tag_field="type", tag="grammar"):
    definition: str
    syntax: Literal["lark", "regex"]


class FreeFormat(Strict, tag_field="type", tag="text"):
    pass


class CustomTool(_Callable, tag_field="type", tag="custom"):
    """A tool whose argument is any text."""

    format: FreeFormat | GrammarFormat | None = None


class NamespaceTool(Strict, tag_field="type", tag="namespace"):
    name: FunctionName
    tools: list[FunctionTool | CustomTool]
    description: str | None = None  # without effect; each tool has its own


class _Kind(msgspec.Struct):
    type: str


_KIND = msgspec.json.Decoder(_Kind)
_TOOL: msgspec.json.Decoder[FunctionTool | CustomTool | NamespaceTool] = msgspec.json.Decoder(
    FunctionTool | CustomTool | NamespaceTool
)


@dataclass(frozen=True, slots=True)
class Callee:
    """A tool as the client knows it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools of a request.

    tools: that the model may call; empty if it must not call tools.
    callees: by the name that the model is told.
    places: of each of `tools` in the request, such as `tools[0].tools[1]`.
    required: a tool must be called.
    named: the one that must be called, by the name that the model is told.
    given: as the client sent them, JSON, without the ignored ones.
    ignored: types of the hosted tools, in order, each once.
    """

    tools: list[Tool] = field(default_factory=list)
    callees: Mapping[str, Callee] = field(default_factory=dict)
    places: Sequence[str] = ()
    required: bool = False
    named: str | None = None
    given: Sequence[Raw] = ()
    ignored: Sequence[str] = ()

    def callee(self, name: str) -> Callee:
        """The tool that the model calls by this name; the model may have made it up."""
        return self.callees.get(name) or Callee(name)


def flat_name(name: str, namespace: str | None) -> str:
    """The name that the model is told of a tool in a namespace, or of one without."""
    return name if namespace is None else f"{namespace}{_SEPARATOR}{name}"


def offered(tools: Sequence[Raw], choice: str | dict[str, Any] | None, *, strict: bool) -> OfferedTools:
    """Read the tools and tool_choice of a request.

    Args:
        tools: JSON.
        choice: tool_choice, decoded.
        strict: hosted tools are refused.

    Raises:
        ServiceError: 400, with the field at fault as param.
    """
    found = _Found()
    for index, raw in enumerate(tools):
        found.add(raw, f"tools[{index}]", strict=strict)
    if len(found.tools) > MAX_TOOLS:
        message = f"tools has {len(found.tools)} tools: at most {MAX_TOOLS} fit"
        raise errors.invalid(message, "tools", "array_above_max_length")
    given, ignored = found.given, list(dict.fromkeys(found.ignored))
    chosen = _chosen(choice, found)
    if chosen.allowed is not None:
        kept = [index for index, tool in enumerate(found.tools) if tool.function.name in chosen.allowed]
        found.tools = [found.tools[index] for index in kept]
        found.places = [found.places[index] for index in kept]
    if chosen.required and not found.tools:
        raise errors.invalid("tool_choice requires a call and there are no tools: send tools", "tool_choice")
    return OfferedTools(found.tools, found.callees, found.places, chosen.required, chosen.named, given, ignored)


class _Found:
    """The tools so far, flat."""

    def __init__(self) -> None:
        self.tools: list[Tool] = []
        self.places: list[str] = []
        self.callees: dict[str, Callee] = {}
        self.given: list[Raw] = []
        self.ignored: list[str] = []

    def add(self, raw: Raw, where: str, *, strict: bool) -> None:
        kind = decoded(_KIND, raw, where).type
        if kind in HOSTED:
            if strict:
                message = f"{where} is of type {kind}, which this server does not have: leave it out"
                raise errors.invalid(message, f"{where}.type", "unsupported_tool")
            self.ignored.append(kind)
            return
        tool = decoded(_TOOL, raw, where)
        self.given.append(Raw(msgspec.json.format(bytes(raw), indent=-1)))  # in one line, as events need it
        if isinstance(tool, NamespaceTool):
            for index, member in enumerate(tool.tools):
                self._add(member, f"{where}.tools[{index}]", tool.name)
        else:
            self._add(tool, where, None)

    def _add(self, tool: FunctionTool | CustomTool, where: str, namespace: str | None) -> None:
        name = flat_name(tool.name, namespace)
        if len(name) > _MAX_NAME:
            message = f"{name} has more than {_MAX_NAME} characters: shorten the name or its namespace"
            raise errors.invalid(message, f"{where}.name")
        if name in self.callees:
            raise errors.invalid(f"two tools are named {name}: rename one", f"{where}.name")
        self.callees[name] = Callee(tool.name, namespace, isinstance(tool, CustomTool))
        self.places.append(where)
        self.tools.append(Tool(type="function", function=_function(tool, name)))


def _function(tool: FunctionTool | CustomTool, name: str) -> FunctionDefinition:
    if isinstance(tool, FunctionTool):
        return FunctionDefinition(
            name=name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        )
    description = tool.description
    if isinstance(tool.format, GrammarFormat):
        grammar = f"The input must follow this {tool.format.syntax} grammar:\n{tool.format.definition}"
        description = f"{description}\n\n{grammar}" if description else grammar
    parameters = {"type": "object", "properties": {CUSTOM_ARGUMENT: {"type": "string"}}, "required": [CUSTOM_ARGUMENT]}
    return FunctionDefinition(name=name, description=description, parameters=parameters)


def template_tools(offered_tools: OfferedTools) -> list[dict[str, Any]]:
    """The tools as the chat template takes them."""
    return tool_forms.template_tools(offered_tools.tools)


class ChosenTool(Strict):
    """The tool that must be called, or one that may be."""

    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


# How JSON schemas describe a tool that is ignored, or refused.
HOSTED_TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"enum": sorted(HOSTED)}},
    "required": ["type"],
}
_CHOSEN = {"anyOf": [{"$ref": "#/components/schemas/ChosenTool"}, HOSTED_TOOL]}


class AllowedTools(Strict):
    """The tools that may be called, or one of which must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[dict[str, Any], Meta(extra_json_schema=_CHOSEN)]]


@dataclass(frozen=True, slots=True)
class _Choice:
    """allowed: names of the tools that may be called; None: all."""

    required: bool = False
    named: str | None = None
    allowed: frozenset[str] | None = None


def _chosen(choice: str | dict[str, Any] | None, found: _Found) -> _Choice:
    if choice is None or choice == "auto":
        return _Choice()
    if choice == "required":
        return _Choice(required=True)
    if choice == "none":
        return _Choice(allowed=frozenset())
    if isinstance(choice, str):
        message = f"tool_choice is {choice!r}: use none, auto, required or one of the tools"
        raise errors.invalid(message, "tool_choice", "invalid_value")
    kind = choice.get("type")
    if kind == "allowed_tools":
        allowed = _converted(choice, AllowedTools)
        names = [_name_of(entry, found, f"tool_choice.tools[{i}]") for i, entry in enumerate(allowed.tools)]
        kept = frozenset(name for name in names if name is not None)
        return _Choice(required=allowed.mode == "required", allowed=kept)
    if isinstance(kind, str) and kind in HOSTED:
        message = f"tool_choice is {kind}, which this server does not have: choose another tool"
        raise errors.invalid(message, "tool_choice.type", "unsupported_tool")
    named = _converted(choice, ChosenTool)
    return _Choice(required=True, named=_found_name(named, found, "tool_choice"))


def _name_of(entry: dict[str, Any], found: _Found, where: str) -> str | None:
    """The name of an allowed tool; None of a hosted one, which was ignored or refused before."""
    kind = entry.get("type")
    if isinstance(kind, str) and kind in HOSTED:
        return None
    try:
        named = msgspec.convert(entry, ChosenTool)
    except msgspec.ValidationError as error:
        raise inside(of_validation(error), where) from error
    return _found_name(named, found, where)


def _found_name(named: ChosenTool, found: _Found, where: str) -> str:
    """The name that the model is told. The client may give the namespace apart, in the name, or not at all."""
    flat = flat_name(named.name, named.namespace)
    if flat in found.callees:
        return flat
    if named.namespace is None:
        same = [each for each, callee in found.callees.items() if callee.name == named.name]
        if len(same) == 1:
            return same[0]
    message = f"{where} names {named.name[:_MAX_NAME]}, which is not one of the tools: name one of them"
    raise errors.invalid(message, f"{where}.name")


def _converted(choice: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(choice, kind)
    except msgspec.ValidationError as error:
        raise inside(of_validation(error), "tool_choice") from error


def in_request_words(error: ServiceError, offered_tools: OfferedTools) -> ServiceError:
    """An error about the tools that the model is told, with their place in the request."""
    parameter = error.parameter or ""
    head, _, rest = parameter.partition("].function")
    digits = head.removeprefix("tools[")
    if not parameter.startswith("tools[") or not digits.isdecimal() or int(digits) >= len(offered_tools.places):
        return error
    return error.renamed(offered_tools.places[int(digits)] + rest)
