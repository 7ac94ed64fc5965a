"""The parts of an answer, independent of an API: reasoning, text, tool calls, and the end.

Reasoning, text and calls are the events of the runtime's OutputParser; this module adds an end, and a beginning for an
answer that goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from msgspec import Struct

from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.scores import SampledLogprobs
from qwonnx.runtime.text.answer_events import CallClosed, CallOpened, ContentDelta, Event
from qwonnx.runtime.text.output_parser import OutputParser

# The model would have gone on.
_CUT_OFF = (FinishReason.LENGTH, FinishReason.DEADLINE)


class EndReason(Enum):
    """Why a successful answer has ended."""

    STOP = "stop"  # the model's end token, a stop token or a stop string
    LENGTH = "length"  # the limit of its tokens, or its deadline
    CALLS = "calls"  # it called tools, and waits for their results


class Usage(Struct, frozen=True):
    """Tokens of a request and its answer.

    num_prompt_tokens: of the prompt.
    num_cached_tokens: tokens of the prompt that were reused instead of computed.
    num_generated_tokens: of the answer, including its reasoning; without those that an earlier request has given.
    num_reasoning_tokens: tokens of the answer that are reasoning and its tags.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_reasoning_tokens: int


class End(Struct, frozen=True):
    """The last part of every successful answer.

    continuation: a token with which another request goes on, after a deadline.
    stop_string: the request's stop string that ended the answer.
    """

    reason: EndReason
    usage: Usage
    continuation: str | None = None
    stop_string: str | None = None


class Begun(Struct, frozen=True):
    """The first part of every answer: its prompt has been read.

    num_prompt_tokens: of the prompt.
    num_cached_tokens: of them, reused instead of computed.
    """

    num_prompt_tokens: int
    num_cached_tokens: int


class Resumed(Struct, frozen=True):
    """A part before the others of an answer that goes on after calls.

    num_calls: calls that have begun in earlier requests.
    open_call: the function's name of the last one if it goes on: ArgumentsDelta or CallClosed follows.
    """

    num_calls: int
    open_call: str | None = None


class ContentLogprobs(Struct, frozen=True):
    """Log probabilities of a token outside of the reasoning. Its text comes with the next parts, if it has any."""

    logprobs: SampledLogprobs


Part = Begun | Resumed | ContentLogprobs | Event | End


class PartReader:
    """Turns the outputs of one request into parts.

    Args:
        parser: of the prompt; None: the answer is only text, as after a prompt that is not a chat.
        one_call: the answer ends after its first tool call.
    """

    def __init__(self, parser: OutputParser | None, *, one_call: bool = False) -> None:
        self._parser = parser
        self._one_call = one_call
        self._called = False
        self._num_reasoning = 0
        self._num_resumed = 0
        self._resumed: Resumed | None = None  # not given yet

    def read(self, output: RequestOutput) -> Iterator[Part]:
        """The parts of the next output. An End is the last part.

        The caller must handle outputs that end with an abort or an error: here every end counts as a normal one.
        """
        if self._resumed is not None:
            yield self._resumed
            self._resumed = None
        was_reasoning = self._parser is not None and self._parser.is_reasoning
        events = self._events(output)
        if output.logprobs is not None and not was_reasoning and not (self._parser and self._parser.is_reasoning):
            yield ContentLogprobs(output.logprobs)
        for event in events:
            self._called = self._called or isinstance(event, CallOpened)
            yield event
            if self._one_call and isinstance(event, CallClosed):
                yield End(EndReason.CALLS, self._usage(output))
                return
        if output.finish_reason is not None:
            reason = self._end_reason(output.finish_reason)
            yield End(reason, self._usage(output), stop_string=output.stop_string)

    def resume(self, texts: Iterable[str]) -> None:
        """Take the texts of an answer's tokens so far, which another request has given: their parts are not repeated.

        Args:
            texts: of the outputs, one a token.
        """
        num_calls, open_call = 0, None
        for text in texts:
            self._num_resumed += 1
            for event in () if self._parser is None else self._parser.push(text):
                match event:
                    case CallOpened(name):
                        num_calls, open_call = num_calls + 1, name
                    case CallClosed():
                        open_call = None
        if num_calls:
            self._called = True
            self._resumed = Resumed(num_calls, open_call)

    def suspended(self, output: RequestOutput, continuation: str) -> End:
        """The end of an answer that goes on: what may become a part waits, and the other request gives it."""
        return End(EndReason.LENGTH, self._usage(output), continuation)

    def cut(self, output: RequestOutput) -> End:
        """The end of an answer whose next part has no room."""
        return End(EndReason.LENGTH, self._usage(output))

    def begun(self, output: RequestOutput) -> Begun:
        """The part before those of the first output."""
        return Begun(output.num_prompt_tokens, output.num_cached_tokens)

    def _events(self, output: RequestOutput) -> list[Event]:
        if self._parser is None:
            return [ContentDelta(output.text)] if output.text else []
        was_reasoning = self._parser.is_reasoning
        events = self._parser.push(output.text)
        if output.finish_reason is not None:
            events += self._parser.finish(cut_off=output.finish_reason in _CUT_OFF)
        if was_reasoning or self._parser.is_reasoning:  # the tags count as well
            self._num_reasoning += len(output.token_ids)
        return events

    def _end_reason(self, reason: FinishReason) -> EndReason:
        if reason in _CUT_OFF:
            return EndReason.LENGTH
        return EndReason.CALLS if self._called else EndReason.STOP

    def _usage(self, output: RequestOutput) -> Usage:
        num_generated = output.num_generated_tokens - self._num_resumed
        return Usage(output.num_prompt_tokens, output.num_cached_tokens, num_generated, self._num_reasoning)
