"""The operations of Anthropic's API."""

from __future__ import annotations

from qwonnx.handlers.anthropic.errors import ErrorBody
from qwonnx.handlers.anthropic.message_objects import (
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageDelta,
    MessageObject,
    MessageStart,
    MessageStop,
    Ping,
    TokenCount,
)
from qwonnx.handlers.anthropic.protocol import CountTokensRequest, MessageRequest
from qwonnx.handlers.http.operation import Operation

OPERATIONS = (
    Operation(
        "POST",
        "/v1/messages",
        "Answer a conversation",
        MessageObject,
        MessageRequest,
        events=(MessageStart, Ping, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, ErrorBody),
        error=ErrorBody,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        "The number of a conversation's tokens",
        TokenCount,
        CountTokensRequest,
        error=ErrorBody,
    ),
)
