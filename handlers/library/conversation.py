"""Conversations as Python programs give them: a text, or messages as a chat completion has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from qwonnx.handlers.chat.validation import Strict, of_validation
from qwonnx.handlers.library.answer import Answer
from qwonnx.handlers.library.errors import in_python_words
from qwonnx.runtime.errors import InvalidRequestError

Messages = str | Iterable[Mapping[str, Any] | Answer]


class _TextPart(Strict, tag_field="type", tag="text"):
    text: str


class _CalledFunction(Strict):
    name: str
    arguments: str | dict[str, Any]


class _Call(Strict):
    function: _CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None
    index: int | None = None


class _Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Conversation(Strict):
    messages: list[_Message]


def template_messages(given: Messages, system: str | None) -> list[dict[str, Any]]:
    """Messages as chat templates take them.

    Args:
        given: a user's text, or messages; an Answer among them is a message of the assistant's.
        system: a text before them.

    Raises:
        InvalidRequestError: a message is malformed, there is none, or there are two system messages at the beginning.
    """
    if isinstance(given, str):
        plain: list[Any] = [{"role": "user", "content": str(given)}]
    else:
        plain = [each.message if isinstance(each, Answer) else each for each in given]
    try:
        read = msgspec.convert({"messages": plain}, _Conversation).messages
    except msgspec.ValidationError as error:
        raise in_python_words(of_validation(error, "messages")) from error
    messages = [_template_message(each) for each in read]
    if not messages:
        raise InvalidRequestError("messages is empty: give a text, or at least one message", "messages")
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise InvalidRequestError("system contradicts the first message: give one of them", "system")
    return [{"role": "system", "content": system}, *messages]


def _template_message(message: _Message) -> dict[str, Any]:
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    entry: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    for name in ("name", "reasoning_content", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            entry[name] = value
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return entry
