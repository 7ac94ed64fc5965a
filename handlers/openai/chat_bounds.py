"""Bounds for the parts of a request, checked before the conversation is rendered.

A template takes about half a millisecond for a message and a few microseconds for a value of JSON, so 100,000 messages
would take a minute before their length is known.
"""

from __future__ import annotations

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.json_size import has_too_many_values
from qwonnx.handlers.openai.chat_protocol import AssistantMessage, ChatCompletionRequest

MAX_MESSAGES = 2048  # as many as OpenAI takes
MAX_PARTS = 8192  # of all messages
MAX_CALLS = 2048  # in all messages
MAX_VALUES = 50_000  # of JSON in the arguments of all calls
MAX_STOP_CHARACTERS = 1024  # of one stop string


def check(request: ChatCompletionRequest) -> None:
    """Check the numbers of messages, parts, calls and of values in their arguments, and the lengths of stop strings.

    The body's size bounds the text, and the engine the tokens.

    Raises:
        ServiceError: 400, with the parameter at fault.
    """
    if len(request.messages) > MAX_MESSAGES:
        raise _too_many(f"messages has {len(request.messages)} messages", MAX_MESSAGES, "messages")
    num_parts = num_calls = 0
    arguments: list[str] = []
    for index, message in enumerate(request.messages):
        if isinstance(message.content, list):
            num_parts += len(message.content)
            if num_parts > MAX_PARTS:
                param = f"messages[{index}].content"
                raise _too_many(f"the messages have more than {MAX_PARTS} parts up to {param}", MAX_PARTS, param)
        if isinstance(message, AssistantMessage) and message.tool_calls:
            num_calls += len(message.tool_calls)
            if num_calls > MAX_CALLS:
                param = f"messages[{index}].tool_calls"
                raise _too_many(f"the messages have more than {MAX_CALLS} calls up to {param}", MAX_CALLS, param)
            arguments += [call.function.arguments for call in message.tool_calls]
    if has_too_many_values(",".join(arguments).encode(), MAX_VALUES):
        raise _too_many("the arguments of the calls have more values than allowed", MAX_VALUES, "messages")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise errors.invalid(f"a stop string is longer than {MAX_STOP_CHARACTERS} characters: shorten it", "stop")


def _too_many(found: str, allowed: int, parameter: str) -> ServiceError:
    return errors.invalid(f"{found}: at most {allowed} fit", parameter, "array_above_max_length")
