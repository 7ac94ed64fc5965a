"""Tools in the form of chat templates, guides and documents: `{"type": "function", "function": {"name", ...}}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat.validation import Strict

MAX_TOOLS = 128

# MCP servers' names have dots, slashes and colons, and Anthropic allows 128 characters. None of these ends a tag.
FunctionName = Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_./:-]{1,128}$")]


class FunctionDefinition(Strict, omit_defaults=True):
    """A function. parameters: the JSON schema of its arguments. strict: a call must be valid by it."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)]


def check_names(tools: Sequence[Tool], parameter: str = "tools[{index}].function.name") -> None:
    """Check that every name appears once.

    Args:
        tools: of the request.
        parameter: the API's name of a tool's name.

    Raises:
        ServiceError: 400, two tools share a name.
    """
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in names:
            message = f"two tools are named {tool.function.name}: rename one"
            raise errors.invalid(message, parameter.format(index=index))
        names.add(tool.function.name)


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as the chat template takes them.

    `strict` is left out: the grammar enforces it, and the model need not know it.
    """
    plain: list[dict[str, Any]] = [msgspec.to_builtins(tool) for tool in tools]
    for tool in plain:
        tool["function"].pop("strict", None)
    return plain
