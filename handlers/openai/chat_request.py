"""A request's body into a checked ChatCompletionRequest, or the 400 that names the parameter at fault.

msgspec checks types, ranges and unknown fields; here its messages get OpenAI's form, and what types cannot say is said:
fields that are not supported, and fields that contradict each other.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from qwonnx.handlers.errors import ApiError
from qwonnx.handlers.openai.chat_protocol import (
    AssistantMessage,
    ChatCompletionRequest,
    Content,
    DeveloperMessage,
    Message,
    NamedTool,
    RefusalPart,
    SystemMessage,
    TextPart,
)

_DECODER = msgspec.json.Decoder(ChatCompletionRequest)

# How msgspec ends its messages: at `$.messages[0].content`, or at `key` in `$.logit_bias`.
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`$")

# Fields that are not supported: the values that ask for nothing, and what to do instead.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "send one request for each answer"),
    "store": ((False,), "answers are never stored"),
    "logprobs": ((False,), "leave it out"),
    "top_logprobs": ((0,), "leave it out"),
    "modalities": ((["text"],), "only text is supported: leave it out"),
    "audio": ((), "only text is supported: leave it out"),
    "prediction": ((), "leave it out"),
    "reasoning_effort": (("none",), "use 'none', or chat_template_kwargs.enable_thinking"),
    "verbosity": ((), "leave it out"),
    "web_search_options": ((), "leave it out"),
    "functions": (([],), "use tools"),
    "function_call": (("none",), "use tool_choice"),
}


def parse(body: bytes) -> ChatCompletionRequest:
    """Decode and check a body.

    Raises:
        ApiError: 400, with the parameter at fault as param.
    """
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _of_validation(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    _check_unsupported(request)
    _check_tools(request)
    _check_limits(request)
    if not request.messages:
        raise ApiError(400, "messages is empty: send at least one message", param="messages")
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")
    return request


def text_of(content: Content | None) -> str:
    """A message's content as one string; parts follow each other without a separator, as in the model's template."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text if isinstance(part, TextPart) else getattr(part, "refusal", "") for part in content)


def offered_tools(request: ChatCompletionRequest) -> list[dict[str, Any]]:
    """The tools that the model is told of, in OpenAI's form; none if it must not call any.

    Whether one is strict is not for the model to know: the grammar sees to it (answer_guide.py).
    """
    if request.tool_choice == "none":
        return []
    tools: list[dict[str, Any]] = [msgspec.to_builtins(tool) for tool in request.tools or ()]
    for tool in tools:
        tool["function"].pop("strict", None)
    return tools


def _of_validation(text: str) -> ApiError:
    """msgspec's complaint in OpenAI's form, with the parameter's path as OpenAI writes it: messages[0].content."""
    found = _PATH.search(text)
    path = found[1] if found else ""
    message = text[: found.start()] if found else text
    unknown = _UNKNOWN_FIELD.match(message)
    if unknown:
        param = f"{path}.{unknown[1]}" if path else unknown[1]
        return ApiError(400, f"unknown parameter {param}: remove it", param=param, code="unknown_parameter")
    missing = re.match(r"^Object missing required field `(.*)`$", message)
    if missing:
        param = f"{path}.{missing[1]}" if path else missing[1]
        return ApiError(400, f"{param} is missing: send it", param=param, code="missing_required_parameter")
    message = message[:1].lower() + message[1:].replace("`", "'")
    return ApiError(400, f"{path or 'the body'} is invalid: {message}", param=path or None, code="invalid_value")


def _check_unsupported(request: ChatCompletionRequest) -> None:
    for name, (neutral, remedy) in _NEUTRAL.items():
        value = getattr(request, name)
        # The types are compared too: True is no 1 here.
        if value is None or any(type(value) is type(other) and value == other for other in neutral):
            continue
        raise ApiError(400, f"{name} is not supported: {remedy}", param=name, code="unsupported_parameter")


def _check_tools(request: ChatCompletionRequest) -> None:
    names = set()
    for index, tool in enumerate(request.tools or ()):
        param = f"tools[{index}].function"
        if tool.function.name in names:
            raise ApiError(400, f"two tools are named {tool.function.name}: rename one", param=f"{param}.name")
        names.add(tool.function.name)
    choice = request.tool_choice
    if choice == "required" and not names:
        raise ApiError(400, "tool_choice is 'required' and there are no tools: send tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        message = f"tool_choice names {choice.function.name}, which is none of the tools: name one of them"
        raise ApiError(400, message, param="tool_choice.function.name")


def thinking(request: ChatCompletionRequest) -> bool | None:
    """What the request says of thinking: on, off, or nothing."""
    if request.reasoning_effort == "none":
        return False
    switches = request.chat_template_kwargs
    return None if switches is None or switches.enable_thinking is msgspec.UNSET else switches.enable_thinking


def _check_limits(request: ChatCompletionRequest) -> None:
    switches = request.chat_template_kwargs
    if request.reasoning_effort == "none" and switches is not None and switches.enable_thinking is True:
        message = "reasoning_effort 'none' contradicts chat_template_kwargs.enable_thinking: send one of them"
        raise ApiError(400, message, param="reasoning_effort")
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ApiError(400, "max_tokens and max_completion_tokens differ: send one of them", param="max_tokens")
    if request.stream_options is not None:
        if not request.stream:
            raise ApiError(400, "stream_options needs stream: set stream to true", param="stream_options")
        if request.stream_options.include_obfuscation:
            param = "stream_options.include_obfuscation"
            raise ApiError(400, f"{param} is not supported: leave it out", param=param, code="unsupported_parameter")


def _check_message(message: Message, where: str) -> None:
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            param = f"{where}.content[{index}]"
            if isinstance(part, TextPart):
                continue
            if isinstance(part, RefusalPart) and isinstance(message, AssistantMessage):
                continue
            kind = type(part).__struct_config__.tag
            raise ApiError(
                400, f"{param} is of type {kind}: send text", param=f"{param}.type", code="unsupported_parameter"
            )
    if isinstance(message, AssistantMessage):
        for name in ("refusal", "audio", "annotations", "function_call"):
            if getattr(message, name):
                param = f"{where}.{name}"
                raise ApiError(400, f"{param} is not supported: remove it", param=param, code="unsupported_parameter")
        if message.content is None and not message.tool_calls and message.reasoning_content is None:
            param = f"{where}.content"
            raise ApiError(400, f"{param} is missing: send the answer or its tool_calls", param=param)


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: plain dicts, content as a string, `developer` as `system`."""
    rendered = []
    for message in messages:
        role = type(message).__struct_config__.tag
        entry: dict[str, Any] = {"role": "system" if isinstance(message, DeveloperMessage | SystemMessage) else role}
        entry["content"] = text_of(message.content)
        for name in ("name", "reasoning_content", "tool_call_id"):
            value = getattr(message, name, None)
            if value is not None:
                entry[name] = value
        if isinstance(message, AssistantMessage) and message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in message.tool_calls
            ]
        rendered.append(entry)
    return rendered
