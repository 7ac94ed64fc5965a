"""OpenAI's objects, byte for byte: the fields that are null, and those that are left out."""

from __future__ import annotations

import msgspec
import pytest

from qwonnx.handlers.openai.chat_objects import (
    DONE,
    AnswerMessage,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionTokensDetails,
    CompletionUsage,
    Delta,
    FunctionCall,
    FunctionDelta,
    PromptTokensDetails,
    ToolCallDelta,
    ToolCallObject,
)

pytestmark = pytest.mark.fast

USAGE = CompletionUsage(7, 3, 10, PromptTokensDetails(2), CompletionTokensDetails(1))
USAGE_JSON = (
    '{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":2},'
    '"completion_tokens_details":{"reasoning_tokens":1}}'
)
CALL = FunctionCall("weigh", '{"n": 1}')


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (AnswerMessage("Hi"), '{"content":"Hi","role":"assistant","refusal":null}'),
        (
            AnswerMessage(None, tool_calls=[ToolCallObject("call_1", CALL)]),
            '{"content":null,"role":"assistant","refusal":null,"tool_calls":[{"id":"call_1","function":'
            '{"name":"weigh","arguments":"{\\"n\\": 1}"},"type":"function"}]}',
        ),
        (
            AnswerMessage("", reasoning_content="Hm."),
            '{"content":"","role":"assistant","refusal":null,"reasoning_content":"Hm."}',
        ),
        (Delta(), "{}"),
        (Delta(role="assistant", content=""), '{"role":"assistant","content":""}'),
        (Delta(reasoning_content="Hm."), '{"reasoning_content":"Hm."}'),
        (
            Delta(tool_calls=[ToolCallDelta(1, FunctionDelta("", "weigh"), "call_1", "function")]),
            '{"tool_calls":[{"index":1,"function":{"arguments":"","name":"weigh"},"id":"call_1","type":"function"}]}',
        ),
        (
            Delta(tool_calls=[ToolCallDelta(1, FunctionDelta('{"n": 1}'))]),
            '{"tool_calls":[{"index":1,"function":{"arguments":"{\\"n\\": 1}"}}]}',
        ),
        (ChunkChoice(Delta(), "length"), '{"delta":{},"finish_reason":"length","index":0,"logprobs":null}'),
        (USAGE, USAGE_JSON),
    ],
)
def test_null_where_openai_sends_null_and_nothing_where_it_sends_nothing(value: msgspec.Struct, expected: str) -> None:
    assert msgspec.json.encode(value).decode() == expected


def test_a_chunk_has_no_usage_or_null_or_the_usage() -> None:
    def usage_of(chunk: ChatCompletionChunk) -> object:
        return msgspec.json.decode(msgspec.json.encode(chunk)).get("usage", "left out")

    assert usage_of(ChatCompletionChunk("i", 0, "m", [], "fp")) == "left out"
    assert usage_of(ChatCompletionChunk("i", 0, "m", [], "fp", None)) is None
    assert usage_of(ChatCompletionChunk("i", 0, "m", [], "fp", USAGE)) == msgspec.json.decode(USAGE_JSON)


def test_a_stream_that_went_well_ends_so() -> None:
    assert DONE == b"data: [DONE]\n\n"
