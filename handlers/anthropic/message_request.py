"""Decode, check and translate a message request; an error is a 400 that names the field at fault.

A message's blocks become messages of the model's template: results of tools come first, each a message of its own, then
the text. Texts of several blocks are separated by a blank line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.anthropic.protocol import (
    CountTokensRequest,
    Message,
    MessageRequest,
    RedactedThinkingBlock,
    ResultBlock,
    TextBlock,
    ThinkingAdaptive,
    ThinkingBetweenTools,
    ThinkingBlock,
    ThinkingEnabled,
    ToolChoiceAny,
    ToolChoiceAuto,
    ToolChoiceNone,
    ToolChoiceTool,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.answer_form import AnswerForm
from qwonnx.handlers.chat.bounds import ConversationBounds, check_stops
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.sampling_fields import sampling_of
from qwonnx.handlers.chat.tools import FunctionDefinition, Tool
from qwonnx.handlers.chat.validation import decoded
from qwonnx.handlers.errors import ServiceError
from qwonnx.runtime.sampling.parameter import Api

_BLANK_LINE = "\n\n"
_NOT_OURS = "x-anthropic-billing-header"  # Claude Code writes it for Anthropic's servers, with a new value in each run
_STATELESS = "this server keeps no state: send all messages"
_REFUSED = {
    "thread": _STATELESS,
    "container": "this server runs no code: leave it out",
    "mcp_servers": "this server connects to no others: connect in your program, and send tools",
}

_THINKS = (ThinkingEnabled, ThinkingBetweenTools)

_Request = TypeVar("_Request", bound=CountTokensRequest)


def parse(body: bytes | bytearray, kind: type[_Request]) -> _Request:
    """Decode and check a body.

    Raises:
        ServiceError: 400, with the parameter at fault.
    """
    request = decoded(body, msgspec.json.Decoder(kind).decode)
    for name, remedy in _REFUSED.items():
        if getattr(request, name) is not None:
            raise errors.invalid(f"{name} is not supported: {remedy}", name, "unsupported_parameter")
    _check_context_management(request)
    _check_tools(request)
    if not request.messages:
        raise errors.invalid("messages is empty: send at least one message", "messages")
    bounds = ConversationBounds()
    bounds.messages(len(request.messages), "messages")
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]", bounds)
    bounds.end("messages")
    if isinstance(request, MessageRequest):
        check_stops(request.stop_sequences or (), "stop_sequences")
    return request


def neutral(request: CountTokensRequest) -> ChatRequest:
    """The request as a ChatRequest.

    Args:
        request: checked.
    """
    thinking, config = request.thinking, request.output_config
    last = request.messages[-1]
    return ChatRequest(
        messages=list(_template_messages(request)),
        tools=[] if isinstance(request.tool_choice, ToolChoiceNone) else tool_forms.template_tools(_tools(request)),
        sampling=_sampling(request) if isinstance(request, MessageRequest) else {},
        guide=_form(request).guide,
        thinking=None if isinstance(thinking, ThinkingAdaptive) else isinstance(thinking, _THINKS),
        effort=None if config is None or thinking is None else config.effort,
        thinking_budget=thinking.budget_tokens if isinstance(thinking, ThinkingEnabled) else None,
        continue_final=last.role == "assistant" and not _blocks(last, ToolUseBlock) and len(request.messages) > 1,
        one_call=bool(getattr(request.tool_choice, "disable_parallel_tool_use", None)),
    )


def in_anthropics_words(error: ServiceError) -> ServiceError:
    """The same error, with the client's name of the parameter instead of the engine's."""
    names = {"prompt": "messages", "stop": "stop_sequences"}
    return error.renamed(names[error.parameter]) if error.parameter in names else error


def _check_context_management(request: CountTokensRequest) -> None:
    edits = [] if request.context_management is None else request.context_management.edits or []
    for index, edit in enumerate(edits):
        if not edit.type.startswith("clear_thinking"):
            param = f"context_management.edits[{index}].type"
            message = f"{param} {edit.type!r} is not supported: leave it out"
            raise errors.invalid(message, param, "unsupported_parameter")


def _check_tools(request: CountTokensRequest) -> None:
    for index, tool in enumerate(request.tools or ()):
        if tool.type not in (None, "custom"):
            param = f"tools[{index}].type"
            message = f"{param} is {tool.type!r}, a tool of Anthropic's servers: send a tool that your program runs"
            raise errors.invalid(message, param, "unsupported_parameter")
    tool_forms.check_names(_tools(request), "tools[{index}].name")
    choice, names = request.tool_choice, [tool.name for tool in request.tools or ()]
    if isinstance(choice, ToolChoiceAny) and not names:
        raise errors.invalid("tool_choice is 'any' and there are no tools: send tools", "tool_choice")
    if isinstance(choice, ToolChoiceTool) and choice.name not in names:
        message = f"tool_choice names {choice.name}, which is not one of the tools: name one of them"
        raise errors.invalid(message, "tool_choice.name")


def _check_message(message: Message, where: str, bounds: ConversationBounds) -> None:
    if isinstance(message.content, str):
        return
    bounds.parts(len(message.content), f"{where}.content")
    allowed: dict[str, tuple[type, ...]] = {
        "user": (TextBlock, ToolResultBlock),
        "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
        "system": (TextBlock,),
    }
    for index, block in enumerate(message.content):
        param = f"{where}.content[{index}]"
        if not isinstance(block, allowed[message.role]):
            raise _no_such_block(block, param, f"a message of the {message.role}")
        if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
            bounds.parts(len(block.content), f"{param}.content")
            for place, part in enumerate(block.content):
                if not isinstance(part, TextBlock | ToolReferenceBlock):
                    raise _no_such_block(part, f"{param}.content[{place}]", "a tool's result")
    calls = _blocks(message, ToolUseBlock)
    bounds.calls([msgspec.json.encode(call.input) for call in calls], f"{where}.content")


def _no_such_block(block: msgspec.Struct, param: str, place: str) -> ServiceError:
    kind = type(block).__struct_config__.tag
    message = f"{param} is of type {kind}, which is not supported in {place}: send text"
    return errors.invalid(message, f"{param}.type", "unsupported_parameter")


_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def _blocks(message: Message, kind: type[_Kind]) -> list[_Kind]:
    return [] if isinstance(message.content, str) else [each for each in message.content if isinstance(each, kind)]


def _template_messages(request: CountTokensRequest) -> Iterator[dict[str, Any]]:
    if request.system is not None:
        texts = [request.system] if isinstance(request.system, str) else [block.text for block in request.system]
        if text := _BLANK_LINE.join(text for text in texts if not text.startswith(_NOT_OURS)):
            yield {"role": "system", "content": text}
    for message in request.messages:
        for result in _blocks(message, ToolResultBlock):
            yield {"role": "tool", "content": _result_text(result), "tool_call_id": result.tool_use_id}
        text = message.content if isinstance(message.content, str) else _joined(_blocks(message, TextBlock))
        entry: dict[str, Any] = {"role": message.role, "content": text}
        if message.role == "assistant":
            if thoughts := [block.thinking for block in _blocks(message, ThinkingBlock) if block.thinking]:
                entry["reasoning_content"] = _BLANK_LINE.join(thoughts)
            if calls := _blocks(message, ToolUseBlock):
                entry["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input}}
                    for call in calls
                ]
        elif not text and _blocks(message, ToolResultBlock):
            continue
        yield entry


def _joined(blocks: Sequence[TextBlock]) -> str:
    return _BLANK_LINE.join(block.text for block in blocks if block.text)


def _result_text(result: ToolResultBlock) -> str:
    content = result.content
    text = content if isinstance(content, str) else _BLANK_LINE.join(_part_text(part) for part in content or ())
    return f"Error: {text}" if result.is_error else text


def _part_text(part: ResultBlock) -> str:
    return part.tool_name if isinstance(part, ToolReferenceBlock) else getattr(part, "text", "")


def _tools(request: CountTokensRequest) -> list[Tool]:
    return [
        Tool(
            type="function",
            function=FunctionDefinition(
                name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
            ),
        )
        for tool in request.tools or ()
    ]


def _form(request: CountTokensRequest) -> AnswerForm:
    choice = request.tool_choice
    form = request.output_format or (None if request.output_config is None else request.output_config.format)
    is_inside = request.output_format is None
    return AnswerForm(
        tools=[] if isinstance(choice, ToolChoiceNone) else _tools(request),
        required=isinstance(choice, ToolChoiceAny),
        named=choice.name if isinstance(choice, ToolChoiceTool) else None,
        parallel=not (isinstance(choice, ToolChoiceAuto | ToolChoiceAny) and choice.disable_parallel_tool_use),
        schema=None if form is None else form.schema,
        schema_parameter="output_config.format.schema" if is_inside else "output_format.schema",
    )


def _sampling(request: MessageRequest) -> dict[str, Any]:
    """Fields of SamplingParams that the request sets."""
    ends = {"max_tokens": request.max_tokens, "stop": tuple(request.stop_sequences or ())}
    return {**sampling_of(request, Api.ANTHROPIC), **ends}
