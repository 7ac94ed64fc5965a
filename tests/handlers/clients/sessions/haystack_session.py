# mypy: ignore-errors
"""haystack: its generators for chat completions and responses, and a pipeline of one."""

from __future__ import annotations

import json
from typing import Literal

from haystack import Pipeline
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    PARAMETERS,
    QUESTION,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    get_weather,
    is_fact,
)
from tests.handlers.clients.sessions.steps import V1, main, step

TOOL = Tool("get_weather", "The weather of a city", PARAMETERS, get_weather)
USER = [ChatMessage.from_user(QUESTION)]


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: Literal[1, 2, 3]


def steps(endpoint: str, kind, form_field: str) -> None:
    def generator(**options):
        return kind(api_key=Secret.from_token("none"), model=MODEL, api_base_url=V1, max_retries=0, **options)

    @step(endpoint, f"{endpoint}: whole")
    def whole() -> None:
        (reply,) = generator().run([ChatMessage.from_system("Be brief."), *USER])["replies"]
        assert reply.text == ANSWER

    @step(endpoint, f"{endpoint}: streamed")
    def streamed() -> None:
        chunks = []
        (reply,) = generator(streaming_callback=chunks.append).run(USER)["replies"]
        assert "".join(chunk.content for chunk in chunks) == reply.text == ANSWER

    @step(endpoint, f"{endpoint}: asynchronous")
    async def asynchronous() -> None:
        (reply,) = (await generator().run_async(USER))["replies"]
        assert reply.text == ANSWER

    @step(endpoint, f"{endpoint}: round of tools")
    def round_of_tools() -> None:
        speaker = generator(tools=[TOOL])
        question = ChatMessage.from_user(WEATHER_QUESTION)
        (first,) = speaker.run([question])["replies"]
        (call,) = first.tool_calls
        assert (call.tool_name, call.arguments) == ("get_weather", CALL)
        (second,) = speaker.run([question, first, ChatMessage.from_tool(json.dumps(WEATHER), call)])["replies"]
        assert second.text == WEATHER_ANSWER

    @step(endpoint, f"{endpoint}: schema")
    def schema() -> None:
        (reply,) = generator(generation_kwargs={form_field: Fact}).run(USER)["replies"]
        assert is_fact(reply.text)

    @step(endpoint, f"{endpoint}: two turns")
    def two_turns() -> None:
        (first,) = generator().run(USER)["replies"]
        (second,) = generator().run([*USER, first, ChatMessage.from_user(NEXT_QUESTION)])["replies"]
        assert second.text == NEXT_ANSWER


steps("chat", OpenAIChatGenerator, "response_format")
steps("responses", OpenAIResponsesChatGenerator, "text_format")


@step("chat")
def pipeline() -> None:
    made = Pipeline()
    made.add_component("model", OpenAIChatGenerator(api_key=Secret.from_token("none"), model=MODEL, api_base_url=V1))
    assert made.run({"model": {"messages": USER}})["model"]["replies"][0].text == ANSWER


if __name__ == "__main__":
    main()
