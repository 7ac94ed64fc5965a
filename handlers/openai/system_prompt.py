"""A system prompt as a file says it: messages and tools, each as in a chat completion request."""

from __future__ import annotations

import msgspec

from qwonnx.handlers.errors import ApiError
from qwonnx.handlers.openai import chat_request
from qwonnx.handlers.openai.chat_protocol import DeveloperMessage, SystemMessage
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.chat_prompt import SystemPrompt

_FIELDS = ("messages", "tools")


def parse_prompt(document: bytes | str) -> SystemPrompt:
    """A system prompt from JSON: `messages`, the system's alone, and `tools`, each as in a chat completion request.

    Raises:
        InvalidRequestError: it is no such document; the message names the field at fault.
    """
    try:
        fields = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the prompt is not valid JSON ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("messages", []), list):
        raise InvalidRequestError("the prompt is no object with a list of messages, and perhaps of tools")
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise InvalidRequestError(f"the prompt has {unknown[0]}: give messages and tools, nothing else")
    question = {"role": "user", "content": "-"}
    body = {**fields, "model": "-", "messages": [*fields.get("messages", []), question]}
    try:
        request = chat_request.parse(msgspec.json.encode(body))
    except ApiError as error:
        raise InvalidRequestError(str(error)) from error
    messages = request.messages[:-1]
    for index, message in enumerate(messages):
        if not isinstance(message, SystemMessage | DeveloperMessage):
            role = type(message).__struct_config__.tag
            raise InvalidRequestError(f"messages[{index}] is of the role {role}: give system messages alone")
    return SystemPrompt(chat_request.template_messages(messages), chat_request.offered_tools(request))
