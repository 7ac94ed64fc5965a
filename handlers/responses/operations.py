"""The operations of the Responses API. Those of stored responses exist to say that there are none."""

from __future__ import annotations

from qwonnx.handlers.http.operation import Operation
from qwonnx.handlers.openai.errors import ErrorBody
from qwonnx.handlers.responses import events
from qwonnx.handlers.responses.objects import InputTokens, ResponseObject
from qwonnx.handlers.responses.protocol import REFERRED, InputTokensRequest, ResponsesRequest

_EVENTS = (
    *(events.Created, events.InProgress, events.Completed, events.Incomplete, events.Failed),
    *(events.ItemAdded, events.ItemDone, events.PartAdded, events.PartDone, events.TextDelta, events.TextDone),
    *(events.ReasoningDelta, events.ReasoningDone, events.SummaryPartAdded, events.SummaryPartDone),
    *(events.SummaryDelta, events.SummaryDone, events.ArgumentsDelta, events.ArgumentsDone),
    *(events.InputDelta, events.InputDone),
)


OPERATIONS = (
    Operation(
        "POST",
        "/v1/responses",
        "Answer a conversation",
        ResponseObject,
        ResponsesRequest,
        events=_EVENTS,
        error=ErrorBody,
        others=REFERRED,
    ),
    Operation(
        "POST",
        "/v1/responses/input_tokens",
        "The number of a conversation's tokens",
        InputTokens,
        InputTokensRequest,
        error=ErrorBody,
        others=REFERRED,
    ),
)
