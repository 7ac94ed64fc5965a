"""Bounds for the parts of a conversation, of any API, checked before it is rendered.

A template takes about half a millisecond for a message and a few microseconds for a value of JSON, so 100,000 messages
would take a minute before their length is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.json_size import has_too_many_values
from qwonnx.runtime.sampling.params import MAX_STOP_LENGTH

MAX_MESSAGES = 2048  # as many as the largest APIs take
MAX_PARTS = 8192  # of all messages
MAX_CALLS = 2048  # in all messages
MAX_VALUES = 50_000  # of JSON in the arguments of all calls


class ConversationBounds:
    """Counts what a conversation has so far; every method raises a ServiceError with status 400 for one too many."""

    def __init__(self) -> None:
        self._num_parts = self._num_calls = 0
        self._arguments: list[bytes] = []

    def messages(self, number: int, parameter: str) -> None:
        """The number of all messages."""
        if number > MAX_MESSAGES:
            raise _too_many(f"{parameter} has {number} messages", MAX_MESSAGES, parameter)

    def parts(self, number: int, parameter: str) -> None:
        """The parts of the next message."""
        self._num_parts += number
        if self._num_parts > MAX_PARTS:
            message = f"the messages have more than {MAX_PARTS} parts up to {parameter}"
            raise _too_many(message, MAX_PARTS, parameter)

    def calls(self, arguments: Sequence[bytes], parameter: str) -> None:
        """The JSON texts of the arguments of the next message's calls."""
        self._num_calls += len(arguments)
        if self._num_calls > MAX_CALLS:
            message = f"the messages have more than {MAX_CALLS} calls up to {parameter}"
            raise _too_many(message, MAX_CALLS, parameter)
        self._arguments += arguments

    def end(self, parameter: str) -> None:
        """The arguments of all calls together."""
        if has_too_many_values(b",".join(self._arguments), MAX_VALUES):
            raise _too_many("the arguments of the calls have more values than allowed", MAX_VALUES, parameter)


def check_stops(stops: Iterable[str], parameter: str) -> None:
    """Check the lengths of stop strings.

    Raises:
        ServiceError: 400.
    """
    if any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        message = f"a stop string is longer than {MAX_STOP_LENGTH} characters: shorten it"
        raise errors.invalid(message, parameter)


def _too_many(found: str, allowed: int, parameter: str) -> ServiceError:
    return errors.invalid(f"{found}: at most {allowed} fit", parameter, "array_above_max_length")
