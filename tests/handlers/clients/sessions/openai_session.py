# mypy: ignore-errors
"""OpenAI's client: chat completions, completions, responses, models."""

from __future__ import annotations

import json
from typing import Literal

import openai
from pydantic import BaseModel, Field

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    FACT,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    THOUGHTS,
    TOOL,
    TOOLS,
    USER,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_USER,
    is_fact,
)
from tests.handlers.clients.sessions.steps import V1, main, step

client = openai.OpenAI(base_url=V1, api_key="none", max_retries=0)
RESPONSE_TOOLS = [{"type": "function", **TOOL, "strict": True}]


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: int = Field(ge=1, le=7)


class GetWeather(BaseModel):
    city: str
    days: int


def async_client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=V1, api_key="none", max_retries=0)


@step("chat")
def whole() -> None:
    completion = client.chat.completions.create(model=MODEL, messages=USER)
    message = completion.choices[0].message
    assert (message.content, message.reasoning_content, completion.choices[0].finish_reason) == (
        ANSWER,
        THOUGHTS,
        "stop",
    )
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


@step("chat")
def streamed_with_usage() -> None:
    fields = {"model": MODEL, "messages": USER, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**fields))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHTS
    assert chunks[-1].usage.completion_tokens > 0


@step("chat")
async def asynchronous() -> None:
    async with async_client() as session:
        completion = await session.chat.completions.create(model=MODEL, messages=USER, reasoning_effort="none")
    assert completion.choices[0].message.content == ANSWER


@step("chat")
async def asynchronous_stream() -> None:
    async with async_client() as session:
        stream = await session.chat.completions.create(model=MODEL, messages=USER, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == ANSWER


@step("chat")
def round_of_tools() -> None:
    first = client.chat.completions.create(model=MODEL, messages=WEATHER_USER, tools=TOOLS)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert (first.choices[0].finish_reason, json.loads(call.function.arguments)) == ("tool_calls", CALL)
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps(WEATHER)}
    second = client.chat.completions.create(model=MODEL, messages=[*WEATHER_USER, message, result], tools=TOOLS)
    assert second.choices[0].message.content == WEATHER_ANSWER


@step("chat")
def call_in_the_clients_own_stream() -> None:
    with client.chat.completions.stream(model=MODEL, messages=WEATHER_USER, tools=TOOLS) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.done" in kinds
    assert json.loads(call.function.arguments) == CALL


@step("chat")
def parse() -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Fact).choices[0].message.parsed
    assert isinstance(parsed, Fact)


@step("chat")
def parse_a_call_of_a_strict_tool() -> None:
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather", description="The weather of a city")
    message = client.chat.completions.parse(model=MODEL, messages=WEATHER_USER, tools=[tool]).choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == GetWeather(**CALL)


@step("chat")
def schema_without_a_client_that_parses() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "fact", "schema": FACT, "strict": True}}
    completion = client.chat.completions.create(model=MODEL, messages=USER, response_format=form)
    assert is_fact(completion.choices[0].message.content)


@step("chat")
def several_choices_with_log_probabilities() -> None:
    fields = {"model": MODEL, "messages": USER, "n": 3, "logprobs": True, "top_logprobs": 2}
    choices = client.chat.completions.create(**fields).choices
    assert [choice.message.content for choice in choices] == [ANSWER] * 3
    for choice in choices:
        assert "".join(token.token for token in choice.logprobs.content).removesuffix("<|im_end|>").strip() == ANSWER
        assert {len(token.top_logprobs) for token in choice.logprobs.content} == {2}


@step("chat")
def a_named_tool_is_called() -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    fields = {"model": MODEL, "messages": WEATHER_USER, "tools": TOOLS, "tool_choice": choice}
    (call,) = client.chat.completions.create(**fields).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == CALL


@step("chat")
def two_turns_with_the_message_sent_back_whole() -> None:
    message = client.chat.completions.create(model=MODEL, messages=USER).choices[0].message
    messages = [
        {"role": "developer", "content": "Be brief."},
        *USER,
        message,
        {"role": "user", "content": NEXT_QUESTION},
    ]
    assert client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content == NEXT_ANSWER


@step("completions")
def text() -> None:
    assert client.completions.create(model=MODEL, prompt=raw_prompt()).choices[0].text == ANSWER


@step("completions")
def text_streamed() -> None:
    parts = client.completions.create(model=MODEL, prompt=raw_prompt(), stream=True)
    assert "".join(part.choices[0].text for part in parts) == ANSWER


@step("completions")
async def text_asynchronous() -> None:
    async with async_client() as session:
        assert (await session.completions.create(model=MODEL, prompt=raw_prompt())).choices[0].text == ANSWER


@step("completions")
def several_texts_with_log_probabilities_and_echo() -> None:
    choices = client.completions.create(model=MODEL, prompt=[raw_prompt()] * 2, n=2, logprobs=1).choices
    assert [choice.text for choice in choices] == [ANSWER] * 4
    assert all(choice.logprobs.token_logprobs[0] <= 0 for choice in choices)
    echoed = client.completions.create(model=MODEL, prompt="One, two,", echo=True, max_tokens=1).choices[0].text
    assert echoed.startswith("One, two,")


def raw_prompt() -> str:
    return f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@step("responses")
def response() -> None:
    response = client.responses.create(model=MODEL, input=QUESTION, instructions="Be brief.")
    assert response.output_text == ANSWER
    assert [item.type for item in response.output] == ["reasoning", "message"]


@step("responses")
def response_streamed() -> None:
    events = list(client.responses.create(model=MODEL, input=QUESTION, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == THOUGHTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


@step("responses")
async def response_asynchronous() -> None:
    async with async_client() as session:
        response = await session.responses.create(model=MODEL, input=QUESTION, reasoning={"effort": "none"})
    assert response.output_text == ANSWER


@step("responses")
async def response_asynchronous_stream() -> None:
    async with async_client() as session, session.responses.stream(model=MODEL, input=QUESTION) as stream:
        async for _ in stream:
            pass
        assert (await stream.get_final_response()).output_text == ANSWER


@step("responses")
def response_round_of_tools() -> None:
    first = client.responses.create(model=MODEL, input=WEATHER_USER, tools=RESPONSE_TOOLS)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) == CALL
    result = {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps(WEATHER)}
    items = [*WEATHER_USER, *first.output, result]
    assert client.responses.create(model=MODEL, input=items, tools=RESPONSE_TOOLS).output_text == WEATHER_ANSWER


@step("responses")
def response_call_streamed() -> None:
    with client.responses.stream(model=MODEL, input=WEATHER_USER, tools=RESPONSE_TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(deltas)) == CALL
    assert final.output[-1].call_id


@step("responses")
def response_parse() -> None:
    assert isinstance(client.responses.parse(model=MODEL, input=QUESTION, text_format=Fact).output_parsed, Fact)


@step("responses")
def two_turns_with_encrypted_reasoning() -> None:
    include = ["reasoning.encrypted_content"]
    first = client.responses.create(model=MODEL, input=USER, include=include, store=False)
    assert first.output[0].encrypted_content
    items = [*USER, *first.output, {"role": "user", "content": NEXT_QUESTION}]
    assert client.responses.create(model=MODEL, input=items, include=include, store=False).output_text == NEXT_ANSWER


@step("responses/input_tokens")
def input_tokens_are_counted() -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION).input_tokens
    assert counted == client.responses.create(model=MODEL, input=QUESTION).usage.input_tokens


@step("models")
def models() -> None:
    assert [model.id for model in client.models.list()]


if __name__ == "__main__":
    main()
