"""OpenAI's response object and its output items as types.

Fields that are None are sent as null, as OpenAI does.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from qwonnx.handlers.openai.chat_objects import LogprobToken
from qwonnx.handlers.responses.protocol import JsonObjectFormat, JsonSchemaFormat, TextFormat

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[LogprobToken] = []


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """The thoughts, as text and as a summary: clients show one or the other."""

    id: str
    summary: list[SummaryText]
    content: list[ReasoningText]
    status: ItemStatus
    encrypted_content: str | UnsetType = UNSET  # if the request includes it


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    content: list[OutputText]
    status: ItemStatus
    role: Literal["assistant"] = "assistant"


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str  # JSON text of an object; open if the answer was cut
    status: ItemStatus
    namespace: str | UnsetType = UNSET


class CustomToolCallItem(msgspec.Struct, tag_field="type", tag="custom_tool_call"):
    id: str
    call_id: str
    name: str
    input: str
    status: ItemStatus
    namespace: str | UnsetType = UNSET


OutputItem = ReasoningItem | MessageItem | FunctionCallItem | CustomToolCallItem


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class ResponseError(msgspec.Struct):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ReasoningEcho(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class TextEcho(msgspec.Struct):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat
    verbosity: str | UnsetType = UNSET


class ResponseObject(msgspec.Struct):
    """A response; its later fields repeat the request."""

    id: str
    created_at: int  # seconds since 1970
    model: str
    status: ResponseStatus
    output: list[OutputItem]
    usage: ResponseUsage | None
    completed_at: int | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    parallel_tool_calls: bool
    reasoning: ReasoningEcho
    temperature: float | None
    text: TextEcho
    tool_choice: Any
    tools: list[Raw]
    top_p: float | None
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    continuation: str | UnsetType = UNSET  # ours: another request goes on with it
    object: Literal["response"] = "response"
    background: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    top_logprobs: int = 0
    truncation: Literal["disabled"] = "disabled"


class InputTokens(msgspec.Struct):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"
