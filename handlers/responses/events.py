"""The events of a streamed response as types, in the order in which they come.

    response.created, response.in_progress
    of each item: response.output_item.added, its own events, response.output_item.done
        reasoning   content_part.added, reasoning_summary_part.added, deltas of both, .done of both
        message     content_part.added, output_text.delta ..., output_text.done, content_part.done
        call        function_call_arguments.delta ..., function_call_arguments.done
        custom call custom_tool_call_input.delta ..., custom_tool_call_input.done
    response.completed, response.incomplete or response.failed

The number of each event is its place in the stream; the writer sets it.
"""

from __future__ import annotations

import msgspec

from qwonnx.handlers.openai.chat_objects import LogprobToken
from qwonnx.handlers.responses.objects import OutputItem, OutputText, ReasoningText, ResponseObject, SummaryText


class Event(msgspec.Struct, kw_only=True, tag_field="type"):
    sequence_number: int = -1


class Created(Event, kw_only=True, tag="response.created"):
    response: ResponseObject


class InProgress(Event, kw_only=True, tag="response.in_progress"):
    response: ResponseObject


class Completed(Event, kw_only=True, tag="response.completed"):
    response: ResponseObject


class Incomplete(Event, kw_only=True, tag="response.incomplete"):
    response: ResponseObject


class Failed(Event, kw_only=True, tag="response.failed"):
    response: ResponseObject


class ItemAdded(Event, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class ItemDone(Event, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class _OfItem(Event, kw_only=True):
    item_id: str
    output_index: int


class _OfPart(_OfItem, kw_only=True):
    content_index: int = 0


class PartAdded(_OfPart, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(_OfPart, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class TextDelta(_OfPart, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[LogprobToken] = []


class TextDone(_OfPart, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[LogprobToken] = []


class ReasoningDelta(_OfPart, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(_OfPart, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class _OfSummary(_OfItem, kw_only=True):
    summary_index: int = 0


class SummaryPartAdded(_OfSummary, kw_only=True, tag="response.reasoning_summary_part.added"):
    part: SummaryText


class SummaryPartDone(_OfSummary, kw_only=True, tag="response.reasoning_summary_part.done"):
    part: SummaryText


class SummaryDelta(_OfSummary, kw_only=True, tag="response.reasoning_summary_text.delta"):
    delta: str


class SummaryDone(_OfSummary, kw_only=True, tag="response.reasoning_summary_text.done"):
    text: str


class ArgumentsDelta(_OfItem, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_OfItem, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class InputDelta(_OfItem, kw_only=True, tag="response.custom_tool_call_input.delta"):
    delta: str


class InputDone(_OfItem, kw_only=True, tag="response.custom_tool_call_input.done"):
    input: str


def name_of(event: Event) -> str:
    """The event's type."""
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str), "every event has a type of its own"
    return tag
