# mypy: ignore-errors
"""The Agents SDK: agents of its models for responses and for chat completions."""

from __future__ import annotations

from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    get_weather,
)
from tests.handlers.clients.sessions.steps import V1, main, step

set_tracing_disabled(True)
TOOL = function_tool(get_weather)


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: int = Field(ge=1, le=7)


def steps(endpoint: str, kind) -> None:
    def agent(**options) -> Agent:
        client = AsyncOpenAI(base_url=V1, api_key="none", max_retries=0)
        return Agent(name="agent", model=kind(model=MODEL, openai_client=client), **options)

    @step(endpoint, f"{endpoint}: run")
    async def run() -> None:
        assert (await Runner.run(agent(instructions="Be brief."), QUESTION)).final_output == ANSWER

    @step(endpoint, f"{endpoint}: stream")
    async def stream() -> None:
        result = Runner.run_streamed(agent(), QUESTION)
        deltas = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
        assert "".join(deltas) == result.final_output == ANSWER

    @step(endpoint, f"{endpoint}: tools")
    async def tools() -> None:
        assert (await Runner.run(agent(tools=[TOOL]), WEATHER_QUESTION)).final_output == WEATHER_ANSWER

    @step(endpoint, f"{endpoint}: tools, streamed")
    async def tools_streamed() -> None:
        result = Runner.run_streamed(agent(tools=[TOOL]), WEATHER_QUESTION)
        kinds = {event.type async for event in result.stream_events()}
        assert "run_item_stream_event" in kinds
        assert result.final_output == WEATHER_ANSWER

    @step(endpoint, f"{endpoint}: a tool must be used")
    async def tool_is_required() -> None:
        settings = ModelSettings(tool_choice="required")
        speaker = agent(tools=[TOOL], model_settings=settings, tool_use_behavior="stop_on_first_tool")
        assert "sunny" in (await Runner.run(speaker, WEATHER_QUESTION)).final_output

    @step(endpoint, f"{endpoint}: output of a type")
    async def output_of_a_type() -> None:
        assert isinstance((await Runner.run(agent(output_type=Fact), QUESTION)).final_output, Fact)

    @step(endpoint, f"{endpoint}: two turns")
    async def two_turns() -> None:
        speaker = agent(instructions="Be brief.")
        first = await Runner.run(speaker, QUESTION)
        items = [*first.to_input_list(), {"role": "user", "content": NEXT_QUESTION}]
        assert (await Runner.run(speaker, items)).final_output == NEXT_ANSWER


steps("responses", OpenAIResponsesModel)
steps("chat", OpenAIChatCompletionsModel)


@step("responses")
async def tools_with_encrypted_reasoning() -> None:
    client = AsyncOpenAI(base_url=V1, api_key="none", max_retries=0)
    settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"])
    model = OpenAIResponsesModel(model=MODEL, openai_client=client)
    speaker = Agent(name="agent", model=model, tools=[TOOL], model_settings=settings)
    assert (await Runner.run(speaker, WEATHER_QUESTION)).final_output == WEATHER_ANSWER


if __name__ == "__main__":
    main()
