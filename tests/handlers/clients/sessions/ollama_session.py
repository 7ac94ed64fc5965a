# mypy: ignore-errors
"""Ollama's client: chat and generate."""

from __future__ import annotations

import json

import ollama

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    FACT,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    THOUGHTS,
    TOOLS,
    USER,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_USER,
    get_weather,
    is_fact,
)
from tests.handlers.clients.sessions.steps import URL, main, step

client = ollama.Client(host=URL)


@step("api/chat")
def whole() -> None:
    answer = client.chat(MODEL, USER, options={"num_predict": 100, "num_ctx": 4096}, keep_alive="5m")
    assert (answer.message.content, answer.done_reason) == (ANSWER, "stop")
    assert answer.eval_count > 0


@step("api/chat")
def streamed() -> None:
    parts = list(client.chat(MODEL, USER, stream=True))
    assert "".join(part.message.content for part in parts) == ANSWER
    assert parts[-1].done
    assert parts[-1].total_duration > 0


@step("api/chat")
def thinking_on_and_off() -> None:
    message = client.chat(MODEL, USER, think=True).message
    assert (message.thinking.strip(), message.content) == (THOUGHTS, ANSWER)
    assert not client.chat(MODEL, USER, think=False).message.thinking


@step("api/chat")
def thinking_streamed() -> None:
    parts = list(client.chat(MODEL, USER, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in parts).strip() == THOUGHTS


@step("api/chat")
def round_of_tools() -> None:
    first = client.chat(MODEL, WEATHER_USER, tools=TOOLS)
    (call,) = first.message.tool_calls
    assert (call.function.name, dict(call.function.arguments)) == ("get_weather", CALL)
    result = {"role": "tool", "tool_name": "get_weather", "content": json.dumps(WEATHER)}
    assert client.chat(MODEL, [*WEATHER_USER, first.message, result], tools=TOOLS).message.content == WEATHER_ANSWER


@step("api/chat")
def call_of_a_python_function_streamed() -> None:
    parts = client.chat(MODEL, WEATHER_USER, tools=[get_weather], stream=True)
    (call,) = [call for part in parts for call in part.message.tool_calls or ()]
    assert dict(call.function.arguments) == CALL


@step("api/chat")
def form() -> None:
    assert is_fact(client.chat(MODEL, USER, format=FACT).message.content)


@step("api/chat")
def two_turns() -> None:
    first = client.chat(MODEL, USER).message
    assert client.chat(MODEL, [*USER, first, {"role": "user", "content": NEXT_QUESTION}]).message.content == NEXT_ANSWER


@step("api/chat")
async def asynchronous() -> None:
    async with ollama.AsyncClient(host=URL) as session:
        stream = await session.chat(MODEL, USER, stream=True)
        assert "".join([part.message.content async for part in stream]) == ANSWER


@step("api/generate")
def text() -> None:
    answer = client.generate(MODEL, QUESTION, system="Be brief.", think=True)
    assert (answer.response, answer.thinking.strip()) == (ANSWER, THOUGHTS)


@step("api/generate")
def text_streamed() -> None:
    assert "".join(part.response for part in client.generate(MODEL, QUESTION, stream=True)) == ANSWER


@step("api/generate")
def text_in_a_form() -> None:
    assert is_fact(client.generate(MODEL, QUESTION, format=FACT).response)


@step("api/generate")
def raw_text() -> None:
    assert client.generate(MODEL, "One, two,", raw=True, options={"num_predict": 4}).eval_count == 4


@step("api/tags")
def models() -> None:
    assert client.list().models


@step("api/show")
def model() -> None:
    assert "tools" in client.show(client.list().models[0].model).capabilities


if __name__ == "__main__":
    main()
