# mypy: ignore-errors
"""qwen-agent: its model for chat completions, and an assistant that calls a function and reads its result."""

from __future__ import annotations

import json
from typing import ClassVar

from qwen_agent.agents import FnCallAgent
from qwen_agent.llm import get_chat_model
from qwen_agent.tools.base import BaseTool, register_tool

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    PARAMETERS,
    THOUGHTS,
    TOOL,
    USER,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
)
from tests.handlers.clients.sessions.steps import V1, main, step

SERVER = {"model": MODEL, "model_server": V1, "api_key": "none", "model_type": "oai"}


@register_tool("get_weather")
class Weather(BaseTool):
    description = "The weather of a city"
    parameters: ClassVar = {name: PARAMETERS[name] for name in ("type", "properties", "required")}

    def call(self, params, **kwargs) -> str:
        assert json.loads(params) == CALL
        return json.dumps(WEATHER)


def model(**generation):
    return get_chat_model({**SERVER, "generate_cfg": {"use_raw_api": True, **generation}})


def last(responses) -> list:
    *_, found = responses
    return found


@step("chat")
def whole() -> None:
    message = model(use_raw_api=False).chat(USER, stream=False)[-1]
    assert message["content"] == ANSWER


@step("chat")
def streamed() -> None:
    said = last(model().chat(USER, stream=True))
    assert "".join(message["content"] for message in said) == ANSWER
    assert "".join(message.get("reasoning_content") or "" for message in said) == THOUGHTS


@step("chat")
def without_thinking() -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert last(model(extra_body=off).chat(USER, stream=True))[-1]["content"] == ANSWER


@step("chat")
def call() -> None:
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    said = last(model().chat(messages, functions=[TOOL], stream=True))
    assert json.loads(said[-1]["function_call"]["arguments"]) == CALL


@step("chat")
def round_of_tools_of_an_agent() -> None:
    speaker = FnCallAgent(function_list=["get_weather"], llm={**SERVER, "generate_cfg": {"use_raw_api": True}})
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    answers = last(speaker.run(messages))
    assert answers[-1]["content"] == WEATHER_ANSWER
    again = last(speaker.run([*messages, *answers, {"role": "user", "content": WEATHER_QUESTION}]))
    assert again[-1]["content"] == WEATHER_ANSWER


@step("chat")
def two_turns() -> None:
    first = last(model().chat(USER, stream=True))
    history = [*USER, *first, {"role": "user", "content": NEXT_QUESTION}]
    assert last(model().chat(history, stream=True))[-1]["content"] == NEXT_ANSWER


if __name__ == "__main__":
    main()
