"""The size of a response while it grows, for platforms that carry answers as a whole, up to a limit.

A stream repeats each text: in its delta, in the .done events of its part and its item, and in the last event. So a part
that is let in takes room for its repetitions as well.
"""

from __future__ import annotations

import msgspec

from qwonnx.handlers.chat.parts import Begun, ContentLogprobs, Resumed
from qwonnx.handlers.http import sse
from qwonnx.handlers.openai.logprobs import LogprobsWriter
from qwonnx.handlers.responses import events
from qwonnx.handlers.responses.events import Event
from qwonnx.handlers.responses.objects import ResponseObject
from qwonnx.handlers.responses.output import Output
from qwonnx.handlers.responses.tools import Callee, OfferedTools
from qwonnx.runtime.text.answer_events import (
    ArgumentsDelta,
    CallClosed,
    CallOpened,
    ContentDelta,
    ReasoningDelta,
)
from qwonnx.runtime.text.answer_events import Event as AnswerEvent

_NUMBER = 999_999_999  # an event's number or an index, of this length
_NUM_FRAMES = 3  # events with the response object
_ITEMS = 3  # item added, item done, last event
# How often a stream repeats the text of a delta, the delta apart. Encrypted reasoning is at most as long as one and a
# half texts, in two events.
_TEXT_COPIES, _CALL_COPIES, _REASONING_COPIES = 4, 4, 11
_WHOLE_REASONING_COPIES = 4
_ID = "x" * 40


class AnswerSize:
    """Measures the parts of one answer.

    Args:
        response: before its first part.
        logprobs: of the writer.
        stream: it is sent as events.
    """

    def __init__(self, response: ResponseObject, logprobs: LogprobsWriter | None, *, stream: bool) -> None:
        self._logprobs = logprobs
        self._stream = stream
        self._frames = msgspec.json.encode(response) * (_NUM_FRAMES if stream else 1)
        self._kind: type[Begun | Resumed | ContentLogprobs | AnswerEvent] | None = None

    def piece(self, part: Begun | Resumed | ContentLogprobs | AnswerEvent) -> bytes:
        """What the part and its repetitions take, or a little more."""
        frames, self._frames = self._frames, b""
        match part:
            case CallOpened(name) | Resumed(_, str(name)):
                # As a custom tool: the names of its events are the longest.
                opened = self._item(CallOpened(name), OfferedTools(callees={name: Callee(name, is_custom=True)}))
            case ContentDelta() | ReasoningDelta() if type(part) is not self._kind:
                opened = self._item(type(part)("x"), OfferedTools())
            case _:
                opened = b""
        if not isinstance(part, ContentLogprobs):
            self._kind = type(part)
        return frames + opened + self._delta(part)

    def _item(self, opening: CallOpened | ContentDelta | ReasoningDelta, tools: OfferedTools) -> bytes:
        """The frame of an item, without text."""
        output = Output(tools, encrypted=False)
        told = list(output.add(opening))
        item = msgspec.json.encode(output.items)
        return b"".join(map(_encoded, told)) * 2 + item * _ITEMS if self._stream else item

    def _delta(self, part: Begun | Resumed | ContentLogprobs | AnswerEvent) -> bytes:
        if isinstance(part, Begun | Resumed | CallOpened | CallClosed):
            return b""
        if isinstance(part, ContentLogprobs):
            token = b"" if self._logprobs is None else msgspec.json.encode(self._logprobs.token(part.logprobs)) + b","
            return token * (_TEXT_COPIES + 1) if self._stream else token
        text = msgspec.json.encode(part.text)[1:-1]
        if not self._stream:
            return text * _WHOLE_REASONING_COPIES if isinstance(part, ReasoningDelta) else text
        index, delta = _NUMBER, part.text
        match part:
            case ContentDelta():
                return _encoded(events.TextDelta(item_id=_ID, output_index=index, delta=delta)) + text * _TEXT_COPIES
            case ReasoningDelta():
                thought = events.ReasoningDelta(item_id=_ID, output_index=index, delta=delta)
                summary = events.SummaryDelta(item_id=_ID, output_index=index, delta=delta)
                return _encoded(thought) + _encoded(summary) + text * _REASONING_COPIES
            case ArgumentsDelta():
                return _encoded(events.InputDelta(item_id=_ID, output_index=index, delta=delta)) + text * _CALL_COPIES


def _encoded(event: Event) -> bytes:
    event.sequence_number = _NUMBER
    return sse.named_event(events.name_of(event), event)
