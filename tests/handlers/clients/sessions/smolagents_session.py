# mypy: ignore-errors
"""smolagents: its model for chat completions, and an agent that calls a tool."""

from __future__ import annotations

import json

from smolagents import OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage, MessageRole

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    FACT,
    MODEL,
    QUESTION,
    WEATHER,
    WEATHER_QUESTION,
    is_fact,
)
from tests.handlers.clients.sessions.steps import V1, main, step


@tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city

    Args:
        city: its name
        days: from now
    """
    return json.dumps(WEATHER)


def model(**options) -> OpenAIModel:
    return OpenAIModel(MODEL, api_base=V1, api_key="none", **options)


def said(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": text}])]


@step("chat")
def whole() -> None:
    message = model().generate(said(QUESTION))
    assert message.content == ANSWER
    assert message.token_usage.output_tokens > 0


@step("chat")
def streamed() -> None:
    assert "".join(delta.content or "" for delta in model().generate_stream(said(QUESTION))) == ANSWER


@step("chat")
def stop_sequences() -> None:
    assert model().generate(said(QUESTION), stop_sequences=[ANSWER[-3:]]).content == ANSWER[:-3]


@step("chat")
def form() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "fact", "schema": FACT, "strict": True}}
    assert is_fact(model().generate(said(QUESTION), response_format=form).content)


@step("chat")
def call_that_is_required() -> None:
    (call,) = model().generate(said(WEATHER_QUESTION), tools_to_call_from=[get_weather]).tool_calls
    arguments = call.function.arguments
    assert (json.loads(arguments) if isinstance(arguments, str) else arguments) == CALL


@step("chat")
def call_streamed() -> None:
    deltas = model().generate_stream(said(WEATHER_QUESTION), tools_to_call_from=[get_weather])
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert json.loads("".join(call.function.arguments or "" for call in calls if call.function)) == CALL


@step("chat")
def agent_takes_two_steps() -> None:
    """Its prompt is longer than what the miniature learnt with, so what it calls is not judged."""
    agent = ToolCallingAgent([get_weather], model(max_tokens=200), max_steps=2, verbosity_level=0)
    agent.run(WEATHER_QUESTION)
    assert len(agent.memory.steps) >= 2


if __name__ == "__main__":
    main()
