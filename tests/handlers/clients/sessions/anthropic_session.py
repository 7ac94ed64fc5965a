# mypy: ignore-errors
"""Anthropic's client: messages, tokens that are counted, models."""

from __future__ import annotations

import json
from typing import Literal

import anthropic
from pydantic import BaseModel

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    FACT,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    PARAMETERS,
    THOUGHTS,
    USER,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_USER,
    is_fact,
)
from tests.handlers.clients.sessions.steps import URL, main, step

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": PARAMETERS}
THINKING = {"type": "enabled", "budget_tokens": 1024}
COMMON = {"model": MODEL, "max_tokens": 2000}


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: Literal[1, 2, 3]


@step("messages")
def whole() -> None:
    message = client.messages.create(messages=USER, system="Be brief.", **COMMON)
    assert ([block.text for block in message.content], message.stop_reason) == ([ANSWER], "end_turn")
    assert message.usage.output_tokens > 0


@step("messages")
def thinking() -> None:
    thought, said = client.messages.create(messages=USER, thinking=THINKING, **COMMON).content
    assert (thought.thinking.strip(), said.text) == (THOUGHTS, ANSWER)
    assert thought.signature


@step("messages")
def thinking_as_much_as_it_needs() -> None:
    fields = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
    kinds = [block.type for block in client.messages.create(messages=USER, **fields, **COMMON).content]
    assert kinds == ["thinking", "text"]


@step("messages")
def events() -> None:
    kinds = [event.type for event in client.messages.create(messages=USER, stream=True, **COMMON)]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert {"content_block_start", "content_block_delta", "content_block_stop", "message_delta"} <= set(kinds)


@step("messages")
def the_clients_own_stream() -> None:
    with client.messages.stream(messages=USER, **COMMON) as stream:
        assert "".join(stream.text_stream) == ANSWER
        assert stream.get_final_message().stop_reason == "end_turn"


@step("messages")
def thinking_streamed() -> None:
    with client.messages.stream(messages=USER, thinking=THINKING, **COMMON) as stream:
        deltas = [event.thinking for event in stream if event.type == "thinking"]
        thought, said = stream.get_final_message().content
    assert "".join(deltas) == thought.thinking
    assert (thought.thinking.strip(), said.text) == (THOUGHTS, ANSWER)


@step("messages")
def round_of_tools() -> None:
    round_of(thinking={"type": "disabled"})


@step("messages")
def round_of_tools_with_thinking() -> None:
    round_of(thinking=THINKING)


def round_of(**fields) -> None:
    fields |= {"tools": [TOOL], **COMMON}
    first = client.messages.create(messages=WEATHER_USER, **fields)
    call = first.content[-1]
    assert (first.stop_reason, call.name, call.input) == ("tool_use", "get_weather", CALL)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps(WEATHER)}
    history = [*WEATHER_USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=history, **fields).content[-1].text == WEATHER_ANSWER


@step("messages")
def call_streamed() -> None:
    with client.messages.stream(messages=WEATHER_USER, tools=[TOOL], **COMMON) as stream:
        deltas = [event.partial_json for event in stream if event.type == "input_json"]
        call = stream.get_final_message().content[-1]
    assert json.loads("".join(deltas)) == call.input == CALL


@step("messages")
def a_tool_is_forced() -> None:
    tool = {"name": "pick", "description": "Pick", "input_schema": FACT, "strict": True}
    for choice in ({"type": "any"}, {"type": "tool", "name": "pick", "disable_parallel_tool_use": True}):
        message = client.messages.create(messages=USER, tools=[tool], tool_choice=choice, **COMMON)
        assert is_fact(message.content[-1].input)


@step("messages")
def parse() -> None:
    parsed = client.messages.parse(messages=USER, output_format=Fact, **COMMON).parsed_output
    assert isinstance(parsed, Fact)


@step("messages")
def schema_without_a_client_that_parses() -> None:
    config = {"format": {"type": "json_schema", "schema": FACT}}
    assert is_fact(client.messages.create(messages=USER, output_config=config, **COMMON).content[-1].text)


@step("messages")
def two_turns_with_the_thoughts_sent_back() -> None:
    first = client.messages.create(messages=USER, thinking=THINKING, **COMMON)
    history = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": NEXT_QUESTION}]
    assert client.messages.create(messages=history, thinking=THINKING, **COMMON).content[-1].text == NEXT_ANSWER


@step("messages")
def a_given_beginning_is_continued() -> None:
    begun = [*USER, {"role": "assistant", "content": ANSWER[:4]}]
    assert client.messages.create(messages=begun, **COMMON).content[0].text == ANSWER[4:]


@step("messages")
def stop_sequence_and_limit() -> None:
    stopped = client.messages.create(messages=USER, stop_sequences=[ANSWER[-3:]], **COMMON)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", ANSWER[-3:])
    cut = client.messages.create(model=MODEL, max_tokens=1, messages=USER)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 1)


@step("messages")
async def asynchronous() -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as session:
        message = await session.messages.create(messages=USER, **COMMON)
        async with session.messages.stream(messages=USER, **COMMON) as stream:
            text = "".join([text async for text in stream.text_stream])
    assert message.content[0].text == text == ANSWER


@step("messages")
def the_beta_client() -> None:
    fields = {"betas": ["interleaved-thinking-2025-05-14"], "thinking": THINKING, **COMMON}
    assert client.beta.messages.create(messages=USER, **fields).content[-1].text == ANSWER


@step("messages/count_tokens")
def tokens_are_counted() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=WEATHER_USER, tools=[TOOL]).input_tokens
    usage = client.messages.create(messages=WEATHER_USER, tools=[TOOL], **COMMON).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


@step("models")
def models() -> None:
    assert [model.id for model in client.models.list()]


if __name__ == "__main__":
    main()
