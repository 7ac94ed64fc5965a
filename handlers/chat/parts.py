"""What an answer is made of, in no API's words: reasoning, text, tool calls, and how it ended.

Reasoning, text and calls are the events of the runtime's OutputParser; here they get an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.text.output_parser import ContentDelta, Event, OutputParser, ToolCall


class EndReason(Enum):
    """Why an answer that succeeded has ended."""

    STOP = "stop"  # the model's end token, a stop token or a stop string
    LENGTH = "length"  # as many tokens as it may have, or its time was up
    CALLS = "calls"  # it called tools, and waits for what they say


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request and its answer.

    num_prompt_tokens: of the prompt.
    num_cached_tokens: of these, how many were not computed but reused.
    num_generated_tokens: of the answer, its reasoning included.
    num_reasoning_tokens: of these, how many are reasoning and its tags.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class End:
    """The last part of every answer that succeeds."""

    reason: EndReason
    usage: Usage


Part = Event | End


class PartReader:
    """Turns the outputs of one request into parts.

    Args:
        parser: of the prompt; None: the answer is text and nothing else, as after a prompt that is no chat.
        one_call: the answer ends after its first tool call, whatever the model still says.
    """

    def __init__(self, parser: OutputParser | None, *, one_call: bool = False) -> None:
        self._parser = parser
        self._one_call = one_call
        self._called = False
        self._num_reasoning = 0

    def read(self, output: RequestOutput) -> Iterator[Part]:
        """The parts of the next output. Nothing follows an End.

        That an output ended by an abort or an error is the caller's to tell: here it has ended by itself.
        """
        for event in self._events(output):
            self._called = self._called or isinstance(event, ToolCall)
            yield event
            if self._called and self._one_call:
                yield End(EndReason.CALLS, self._usage(output))
                return
        if output.finish_reason is not None:
            yield End(self._end_reason(output.finish_reason), self._usage(output))

    def _events(self, output: RequestOutput) -> list[Event]:
        if self._parser is None:
            return [ContentDelta(output.text)] if output.text else []
        was_reasoning = self._parser.is_reasoning
        events = self._parser.push(output.text)
        if output.finish_reason is not None:
            events += self._parser.finish()
        if was_reasoning or self._parser.is_reasoning:  # the tags count as well
            self._num_reasoning += len(output.token_ids)
        return events

    def _end_reason(self, reason: FinishReason) -> EndReason:
        if reason in (FinishReason.LENGTH, FinishReason.DEADLINE):
            return EndReason.LENGTH
        return EndReason.CALLS if self._called else EndReason.STOP

    def _usage(self, output: RequestOutput) -> Usage:
        return Usage(
            output.num_prompt_tokens, output.num_cached_tokens, output.num_generated_tokens, self._num_reasoning
        )
