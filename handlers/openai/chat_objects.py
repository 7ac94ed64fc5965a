"""OpenAI's chat completion objects as types: answers, as a whole or in chunks.

A message's fields that are None are sent as null, as OpenAI does; a delta's are left out.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qwonnx.handlers.openai.answer_timer import Timings

DONE = b"data: [DONE]\n\n"  # the last event of a successful stream

FinishReasonName = Literal["stop", "length", "tool_calls"]


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str  # JSON text of an object


class ToolCallObject(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    arguments: str  # more of the JSON text
    name: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """More of a call. Its first delta has id, type and name; the others have only arguments."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class CompletionUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnswerMessage(msgspec.Struct):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    tool_calls: list[ToolCallObject] | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class LogprobToken(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    """Of the tokens outside of the reasoning."""

    content: list[LogprobToken]
    refusal: None = None


class Choice(msgspec.Struct):
    message: AnswerMessage
    finish_reason: FinishReasonName
    index: int = 0
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int  # seconds since 1970
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str  # with a seed: equal fingerprints mean equal models
    continuation: str | msgspec.UnsetType = msgspec.UNSET  # ours: another request goes on with it
    timings: Timings | msgspec.UnsetType = msgspec.UNSET  # ours: if they are asked for
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct):
    delta: Delta
    finish_reason: FinishReasonName | None = None
    index: int = 0
    logprobs: Logprobs | None = None


class ChatCompletionChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: CompletionUsage | msgspec.UnsetType | None = msgspec.UNSET
    continuation: str | msgspec.UnsetType = msgspec.UNSET  # in the chunk with the finish_reason
    timings: Timings | msgspec.UnsetType = msgspec.UNSET  # in the last chunk with a finish_reason
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
