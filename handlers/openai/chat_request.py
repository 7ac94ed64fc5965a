"""Decode and check a request's body; an error is a 400 that names the parameter at fault.

msgspec checks types, ranges and unknown fields; this module gives its messages OpenAI's form. It also refuses fields
that are not supported, and fields that contradict each other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.validation import check_neutral, decoded
from qwonnx.handlers.effort import thinks
from qwonnx.handlers.openai import chat_bounds
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
from qwonnx.handlers.openai.generation_fields import check_stream_options

_DECODER = msgspec.json.Decoder(ChatCompletionRequest)

# Fields that are not supported: their neutral values, and the remedy.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "store": ((False,), "answers are never stored"),
    "modalities": ((["text"],), "only text is supported: leave it out"),
    "audio": ((), "only text is supported: leave it out"),
    "prediction": ((), "leave it out"),
    "web_search_options": ((), "leave it out"),
    "functions": (([],), "use tools"),
    "function_call": (("none",), "use tool_choice"),
}


def parse(body: bytes | bytearray) -> ChatCompletionRequest:
    """Decode and check a body. Takes up to 0.2 s for 10 MB.

    Raises:
        ServiceError: 400, with the parameter at fault as param.
    """
    request = decoded(body, _DECODER.decode)
    check_neutral(request, _NEUTRAL)
    _check_tools(request)
    _check_limits(request)
    if not request.messages:
        raise errors.invalid("messages is empty: send at least one message", "messages")
    chat_bounds.check(request)
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")
    _check_final(request)
    return request


def text_of(content: Content | None) -> str:
    """A message's content as one string; parts follow each other without a separator, as in the model's template."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text if isinstance(part, TextPart) else getattr(part, "refusal", "") for part in content)


def offered_tools(request: ChatCompletionRequest) -> list[dict[str, Any]]:
    """The tools that the model may call; empty if it must not call tools."""
    return [] if request.tool_choice == "none" else tool_forms.template_tools(request.tools or ())


def _check_tools(request: ChatCompletionRequest) -> None:
    tools = request.tools or []
    tool_forms.check_names(tools)
    choice = request.tool_choice
    if choice == "required" and not tools:
        raise errors.invalid("tool_choice is 'required' and there are no tools: send tools", "tool_choice")
    if isinstance(choice, NamedTool) and all(choice.function.name != tool.function.name for tool in tools):
        message = f"tool_choice names {choice.function.name}, which is not one of the tools: name one of them"
        raise errors.invalid(message, "tool_choice.function.name")


def thinking(request: ChatCompletionRequest) -> bool | None:
    """Whether the request turns thinking on or off; None if it does neither."""
    asked = switch(request, "enable_thinking")
    return thinks(request.reasoning_effort) if asked is None else asked


def switch(request: ChatCompletionRequest, name: str) -> bool | None:
    """A switch of the chat template that the request sets; None if it does not."""
    found = getattr(request.chat_template_kwargs, name, msgspec.UNSET)
    return None if found is msgspec.UNSET else found


def _check_limits(request: ChatCompletionRequest) -> None:
    asked = switch(request, "enable_thinking")
    if asked is not None and asked is not (thinks(request.reasoning_effort) if request.reasoning_effort else asked):
        effort = request.reasoning_effort
        message = f"reasoning_effort {effort!r} contradicts chat_template_kwargs.enable_thinking: send one of them"
        raise errors.invalid(message, "reasoning_effort")
    if request.top_logprobs and not request.logprobs:
        raise errors.invalid("top_logprobs needs logprobs: set logprobs to true", "top_logprobs")
    if request.continuation is not None and (request.n or 1) > 1:
        raise errors.invalid("a continuation goes on with one answer: leave out n", "n")
    if request.add_generation_prompt is False and not request.continue_final_message:
        message = "add_generation_prompt false is not supported without continue_final_message: leave it out"
        raise errors.invalid(message, "add_generation_prompt", "unsupported_parameter")
    if request.add_generation_prompt and request.continue_final_message:
        message = "continue_final_message contradicts add_generation_prompt: send one of them"
        raise errors.invalid(message, "continue_final_message")
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise errors.invalid("max_tokens and max_completion_tokens differ: send one of them", "max_tokens")
    check_stream_options(request.stream_options, is_stream=bool(request.stream))


def _check_message(message: Message, where: str) -> None:
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            param = f"{where}.content[{index}]"
            if isinstance(part, TextPart):
                continue
            if isinstance(part, RefusalPart) and isinstance(message, AssistantMessage):
                continue
            kind = type(part).__struct_config__.tag
            raise errors.invalid(f"{param} is of type {kind}: send text", f"{param}.type", "unsupported_parameter")
    if isinstance(message, AssistantMessage):
        both = message.reasoning is not None and message.reasoning_content is not None
        if both and message.reasoning != message.reasoning_content:
            param = f"{where}.reasoning"
            raise errors.invalid(f"{param} and reasoning_content differ: send one of them", param)
        for name in ("refusal", "audio", "annotations", "function_call"):
            if getattr(message, name):
                param = f"{where}.{name}"
                raise errors.invalid(f"{param} is not supported: remove it", param, "unsupported_parameter")
        if message.content is None and not message.tool_calls and _reasoning(message) is None:
            param = f"{where}.content"
            raise errors.invalid(f"{param} is missing: send the answer or its tool_calls", param)


def _check_final(request: ChatCompletionRequest) -> None:
    if request.continue_final_message:
        last = request.messages[-1]
        if not isinstance(last, AssistantMessage) or last.tool_calls:
            message = "continue_final_message needs an assistant's message without tool_calls at the end: send one"
            raise errors.invalid(message, "continue_final_message")
        if len(request.messages) == 1:
            message = "continue_final_message needs a message before the assistant's: send the user's"
            raise errors.invalid(message, "messages")


def _reasoning(message: AssistantMessage) -> str | None:
    return message.reasoning if message.reasoning_content is None else message.reasoning_content


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: plain dicts, content as a string, `developer` as `system`."""
    rendered = []
    for message in messages:
        role = type(message).__struct_config__.tag
        entry: dict[str, Any] = {"role": "system" if isinstance(message, DeveloperMessage | SystemMessage) else role}
        entry["content"] = text_of(message.content)
        reasoning = _reasoning(message) if isinstance(message, AssistantMessage) else None
        found = {
            "name": message.name,
            "reasoning_content": reasoning,
            "tool_call_id": getattr(message, "tool_call_id", None),
        }
        entry.update((name, value) for name, value in found.items() if value is not None)
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
