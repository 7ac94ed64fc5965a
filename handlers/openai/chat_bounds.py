"""The bounds of chat/bounds.py on a chat completion request."""

from __future__ import annotations

from qwonnx.handlers.chat.bounds import ConversationBounds, check_stops
from qwonnx.handlers.openai.chat_protocol import AssistantMessage, ChatCompletionRequest


def check(request: ChatCompletionRequest) -> None:
    """Check the numbers of messages, parts, calls and of values in their arguments, and the lengths of stop strings.

    The body's size bounds the text, and the engine the tokens.

    Raises:
        ServiceError: 400, with the parameter at fault.
    """
    bounds = ConversationBounds()
    bounds.messages(len(request.messages), "messages")
    for index, message in enumerate(request.messages):
        if isinstance(message.content, list):
            bounds.parts(len(message.content), f"messages[{index}].content")
        if isinstance(message, AssistantMessage) and message.tool_calls:
            arguments = [call.function.arguments.encode(errors="replace") for call in message.tool_calls]
            bounds.calls(arguments, f"messages[{index}].tool_calls")
    bounds.end("messages")
    check_stops([request.stop] if isinstance(request.stop, str) else request.stop or [], "stop")
