"""Decode, check and translate requests; an error is a 400 whose message names the field at fault."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.answer_form import AnswerForm
from qwonnx.handlers.chat.bounds import ConversationBounds, check_stops
from qwonnx.handlers.chat.request import ChatRequest as NeutralChat
from qwonnx.handlers.chat.sampling_fields import sampling_of
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.handlers.chat.tools import FunctionDefinition as NeutralFunction
from qwonnx.handlers.chat.tools import Tool as NeutralTool
from qwonnx.handlers.chat.validation import decoded
from qwonnx.handlers.ollama.protocol import ChatRequest, GenerateRequest, Message, Options
from qwonnx.runtime.sampling.parameter import Api

_NEUTRAL = {"mirostat": (0,), "typical_p": (1.0,), "tfs_z": (1.0,)}

_Body = TypeVar("_Body")


def parse(body: bytes | bytearray, kind: type[_Body]) -> _Body:
    """Decode a body.

    Raises:
        ServiceError: 400.
    """
    return decoded(body, msgspec.json.Decoder(kind).decode)


def chat(request: ChatRequest) -> NeutralChat:
    """A chat as a neutral request. It has messages.

    Raises:
        ServiceError: 400.
    """
    messages = request.messages or []
    bounds = ConversationBounds()
    bounds.messages(len(messages), "messages")
    for index, message in enumerate(messages):
        if message.images:
            raise errors.invalid(f"messages[{index}].images is not supported: send text", f"messages[{index}].images")
        calls = [msgspec.json.encode(call.function.arguments) for call in message.tool_calls or ()]
        bounds.calls(calls, f"messages[{index}].tool_calls")
    bounds.end("messages")
    tools = [
        NeutralTool(
            type="function",
            function=NeutralFunction(
                name=tool.function.name,
                description=tool.function.description,
                parameters=tool.function.parameters,
                strict=tool.function.strict,
            ),
        )
        for tool in request.tools or ()
    ]
    tool_forms.check_names(tools)
    return NeutralChat(
        messages=[_template_message(message) for message in messages],
        tools=tool_forms.template_tools(tools),
        **_generation(request, tools),
    )


def text(request: GenerateRequest) -> NeutralChat | TextRequest:
    """A text as a conversation of one message, or as it is if it is raw.

    Raises:
        ServiceError: 400.
    """
    for name in ("suffix", "template", "images", "context"):
        if getattr(request, name):
            raise errors.invalid(f"{name} is not supported: send messages to /api/chat", name, "unsupported_parameter")
    prompt, shared = request.prompt or "", _generation(request, [])
    if request.raw:
        if request.system:
            raise errors.invalid("system contradicts raw: write it into the prompt", "system")
        return TextRequest(prompt, shared["sampling"], shared["guide"])
    system = [{"role": "system", "content": request.system}] if request.system else []
    return NeutralChat(messages=[*system, {"role": "user", "content": prompt}], **shared)


def _generation(request: ChatRequest | GenerateRequest, tools: list[NeutralTool]) -> dict[str, Any]:
    """Fields of a neutral request about the answer.

    Raises:
        ServiceError: 400.
    """
    if request.logprobs:
        raise errors.invalid("logprobs is not supported here: use /v1/chat/completions", "logprobs")
    schema = {"type": "object"} if request.format == "json" else request.format or None
    think = request.think
    fields: dict[str, Any] = {
        "sampling": _sampling(request.options or Options()),
        "guide": AnswerForm(tools=tools, schema=schema, schema_parameter="format").guide,
    }
    if isinstance(think, str):
        fields["effort"] = think
    elif think is not None:
        fields["thinking"] = think
    return fields


def _sampling(options: Options) -> dict[str, Any]:
    """Fields of SamplingParams that the options set.

    Raises:
        ServiceError: 400.
    """
    for name, neutral in _NEUTRAL.items():
        value = getattr(options, name)
        if value is not None and value not in neutral:
            message = f"options.{name} is not supported: leave it out"
            raise errors.invalid(message, f"options.{name}", "unsupported_parameter")
    stops = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ())
    check_stops(stops, "options.stop")
    if options.num_predict == 0:
        raise errors.invalid(
            "options.num_predict is 0: give at least 1, or -1 for as many as fit", "options.num_predict"
        )
    limit = options.num_predict
    given = sampling_of(options, Api.OLLAMA)
    return {**given, "stop": stops, "max_tokens": limit if limit is not None and limit > 0 else None}


def _template_message(message: Message) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.role == "assistant" and message.thinking:
        entry["reasoning_content"] = message.thinking
    if message.role == "assistant" and message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for number, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool" and message.tool_name:
        entry["name"] = message.tool_name
    return entry
