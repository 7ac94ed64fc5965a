# mypy: ignore-errors
"""instructor: its modes for chat completions, responses and messages, but those that ask for JSON in words.

The tool is named after the class, so the class has the name of a tool that the miniature knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import anthropic
import instructor
import openai
from instructor import Mode
from pydantic import BaseModel

from tests.handlers.clients.sessions.questions import CALL, MODEL, USER, WEATHER_QUESTION
from tests.handlers.clients.sessions.steps import URL, V1, main, step


class get_weather(BaseModel):
    """The weather of a city"""

    city: str
    days: int


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: Literal[1, 2, 3]


WEATHER = [{"role": "user", "content": WEATHER_QUESTION}]


def of_openai(mode: Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=V1, api_key="none", max_retries=0), mode=mode)


def of_openai_async(mode: Mode) -> instructor.AsyncInstructor:
    return instructor.from_openai(openai.AsyncOpenAI(base_url=V1, api_key="none", max_retries=0), mode=mode)


def of_anthropic(mode: Mode) -> instructor.Instructor:
    return instructor.from_anthropic(anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0), mode=mode)


def asked(client, kind, messages, **fields):
    return client.create(model=MODEL, response_model=kind, messages=messages, max_retries=0, **fields)


@step("chat")
def tools() -> None:
    assert asked(of_openai(Mode.TOOLS), get_weather, WEATHER).model_dump() == CALL


@step("chat")
def tools_with_the_completion() -> None:
    fields = {"model": MODEL, "response_model": get_weather, "messages": WEATHER, "max_retries": 0}
    found, completion = of_openai(Mode.TOOLS).create_with_completion(**fields)
    assert found.model_dump() == CALL
    assert completion.usage.completion_tokens > 0


@step("chat")
async def tools_asynchronous() -> None:
    assert (await asked(of_openai_async(Mode.TOOLS), get_weather, WEATHER)).model_dump() == CALL


@step("chat")
def tools_streamed() -> None:
    client = of_openai(Mode.TOOLS)
    parts = list(client.create_partial(model=MODEL, response_model=get_weather, messages=WEATHER, max_retries=0))
    assert parts[-1].model_dump() == CALL
    assert len(parts) > 2


@step("chat")
def strict_tools() -> None:
    assert asked(of_openai(Mode.TOOLS_STRICT), get_weather, WEATHER).model_dump() == CALL


@step("chat")
def functions() -> None:
    assert asked(of_openai(Mode.FUNCTIONS), get_weather, WEATHER).model_dump() == CALL


@step("chat")
def parallel_tools() -> None:
    found = asked(of_openai(Mode.PARALLEL_TOOLS), Iterable[get_weather], WEATHER)
    assert [call.model_dump() for call in found] == [CALL]


@step("chat")
def schema() -> None:
    assert isinstance(asked(of_openai(Mode.JSON_SCHEMA), Fact, USER), Fact)


@step("chat")
def schema_streamed() -> None:
    client = of_openai(Mode.JSON_SCHEMA)
    parts = list(client.create_partial(model=MODEL, response_model=Fact, messages=USER, max_retries=0))
    assert parts[-1].country in ("Germany", "Kenya")


@step("chat")
async def schema_asynchronous() -> None:
    assert isinstance(await asked(of_openai_async(Mode.JSON_SCHEMA), Fact, USER), Fact)


@step("responses")
def tools_of_responses() -> None:
    assert asked(of_openai(Mode.RESPONSES_TOOLS), get_weather, WEATHER).model_dump() == CALL


@step("messages")
def tools_of_anthropic() -> None:
    client = of_anthropic(Mode.ANTHROPIC_TOOLS)
    assert asked(client, get_weather, WEATHER, max_tokens=500).model_dump() == CALL


@step("messages")
def tools_of_anthropic_with_thinking() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    client = of_anthropic(Mode.ANTHROPIC_REASONING_TOOLS)
    assert asked(client, get_weather, WEATHER, max_tokens=2000, thinking=thinking).model_dump() == CALL


@step("messages")
def parallel_tools_of_anthropic() -> None:
    found = asked(of_anthropic(Mode.ANTHROPIC_PARALLEL_TOOLS), Iterable[get_weather], WEATHER, max_tokens=500)
    assert [call.model_dump() for call in found] == [CALL]


if __name__ == "__main__":
    main()
