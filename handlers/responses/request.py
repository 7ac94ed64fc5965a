"""Decode and check a request's body, and translate it to a neutral one; parameters of errors back to its names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat.answer_form import AnswerForm
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.sampling_fields import sampling_of
from qwonnx.handlers.chat.validation import check_neutral, decoded
from qwonnx.handlers.effort import Effort
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.openai.generation_fields import check_stream_options
from qwonnx.handlers.responses import conversation, items
from qwonnx.handlers.responses import tools as tool_types
from qwonnx.handlers.responses.items import FindItem
from qwonnx.handlers.responses.protocol import (
    INCLUDES,
    LOGPROBS,
    InputTokensRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponsesRequest,
)
from qwonnx.handlers.responses.tools import OfferedTools
from qwonnx.runtime.sampling.parameter import Api

_STATELESS = "this server stores nothing: send the earlier output items in input"
# Fields that are not supported: their neutral values, and the remedy.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((), _STATELESS),
    "conversation": ((), _STATELESS),
    "background": ((False,), "this server stores nothing: use stream"),
    "background_options": ((), "leave it out"),
    "prompt": ((), "this server stores nothing: send the text in instructions or input"),
    "truncation": (("disabled",), "items are never left out of the input: use 'disabled'"),
    "context_management": (([],), "leave it out, and shorten the input"),
    "moderation": ((), "leave it out"),
    "image": ((), "only text is supported: leave it out"),
    "access_programs": ((), "leave it out"),
    "personality": ((), "send it as instructions"),
}

_SCHEMA_PARAM = "text.format.schema"
_ANSWER_PARAM = "response_format"  # the name that a guide of tools has for it

Body = TypeVar("Body", ResponsesRequest, InputTokensRequest)
_RESPONSES = msgspec.json.Decoder(ResponsesRequest)
_INPUT_TOKENS = msgspec.json.Decoder(InputTokensRequest)


@dataclass(frozen=True, slots=True)
class Understood:
    """A request for a response as the client wrote it, and as the other layers take it."""

    body: ResponsesRequest
    tools: OfferedTools
    neutral: ChatRequest


@dataclass(frozen=True, slots=True)
class Counted:
    """A request for a number of tokens. model: that it names, if any."""

    model: str | None
    tools: OfferedTools
    neutral: ChatRequest


def understood(data: bytes | bytearray, *, strict_tools: bool = False, find: FindItem = lambda _: None) -> Understood:
    """Decode, check and translate the body of a request for a response. Takes up to 0.3 s for 10 MB.

    Args:
        data: JSON.
        strict_tools: refuse hosted tools instead of ignoring them.
        find: see items.decoded().

    Raises:
        ServiceError: 400, with the parameter at fault as param.
    """
    body = _decoded(data, _RESPONSES.decode)
    _check_includes(body.include or ())
    check_stream_options(body.stream_options, is_stream=bool(body.stream))
    tools = tool_types.offered(body.tools or (), body.tool_choice, strict=strict_tools)
    form = _form(body, tools)
    neutral = ChatRequest(
        messages=_messages(body, find),
        tools=tool_types.template_tools(tools),
        sampling=_sampling(body),
        guide=form.guide if form.tools or form.schema is not None else None,
        effort=_effort(body),
        thinking_budget=body.thinking_budget,
        preserve_thinking=_preserve_thinking(body),
        one_call=body.parallel_tool_calls is False,
        continuation=body.continuation,
    )
    body.input, body.tools = "", None  # they refer to the body's bytes
    return Understood(body, tools, neutral)


def counted(data: bytes | bytearray, *, strict_tools: bool = False, find: FindItem = lambda _: None) -> Counted:
    """Decode, check and translate the body of a request for a number of tokens.

    Raises:
        ServiceError: 400, with the parameter at fault as param.
    """
    body = _decoded(data, _INPUT_TOKENS.decode)
    tools = tool_types.offered(body.tools or (), body.tool_choice, strict=strict_tools)
    neutral = ChatRequest(
        messages=_messages(body, find),
        tools=tool_types.template_tools(tools),
        effort=_effort(body),
        preserve_thinking=_preserve_thinking(body),
    )
    return Counted(body.model, tools, neutral)


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether texts of the answer have the log probabilities of their tokens."""
    return bool(body.top_logprobs) or LOGPROBS in (body.include or ())


def in_request_words(error: ServiceError, tools: OfferedTools) -> ServiceError:
    """The same error, with the client's name of the parameter instead of the engine's."""
    if error.parameter in ("prompt", "messages"):
        return error.renamed("input")
    if error.parameter == "max_tokens":
        return error.renamed("max_output_tokens")
    if error.parameter is not None and error.parameter.startswith(_ANSWER_PARAM):
        return error.renamed(_SCHEMA_PARAM + error.parameter.removeprefix(_ANSWER_PARAM))
    return tool_types.in_request_words(error, tools)


def _decoded(data: bytes | bytearray, decode: Callable[[bytes | bytearray], Body]) -> Body:
    body = decoded(data, decode)
    check_neutral(body, _NEUTRAL)
    return body


def _messages(body: ResponsesRequest | InputTokensRequest, find: FindItem) -> list[dict[str, Any]]:
    if isinstance(body.input, str):
        given: list[items.Item] = [items.GivenMessage(role="user", content=body.input)]
    else:
        given = items.decoded(body.input, find)
    conversation.check_bounds(given)
    messages = conversation.messages_of(given, body.instructions)
    if not messages:
        raise errors.invalid("input is empty: send a text, or at least one item", "input")
    return messages


def _check_includes(includes: Sequence[str]) -> None:
    for index, name in enumerate(includes):
        if name in INCLUDES:
            continue
        param = f"include[{index}]"
        known = ", ".join(INCLUDES)
        raise errors.invalid(f"{param} is {name[:100]!r}: use one of {known}", param, "invalid_value")


def _effort(body: ResponsesRequest | InputTokensRequest) -> Effort | None:
    return None if body.reasoning is None else body.reasoning.effort


def _preserve_thinking(body: ResponsesRequest | InputTokensRequest) -> bool | None:
    """Whether thoughts of earlier turns stay in the prompt; None leaves it to the template."""
    context = None if body.reasoning is None else body.reasoning.context
    return None if context in (None, "auto") else context == "all_turns"


def _sampling(body: ResponsesRequest) -> dict[str, Any]:
    """Fields of SamplingParams that the request sets."""
    logprobs = (body.top_logprobs or 0) if wants_logprobs(body) else None
    return {**sampling_of(body, Api.RESPONSES), "logprobs": logprobs, "max_tokens": body.max_output_tokens}


def _schema(body: ResponsesRequest) -> dict[str, Any] | bool | None:
    """The schema of an answer without calls; None for any text."""
    match None if body.text is None else body.text.format:
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat(schema=schema):
            return schema
    return None


def _form(body: ResponsesRequest, tools: OfferedTools) -> AnswerForm:
    return AnswerForm(
        tools=tools.tools,
        required=tools.required,
        named=tools.named,
        parallel=body.parallel_tool_calls is not False,
        schema=_schema(body),
        schema_parameter=_SCHEMA_PARAM,
    )
