# mypy: ignore-errors
"""pydantic-ai: agents of its models for chat completions, responses and Anthropic's messages."""

from __future__ import annotations

from typing import Literal

from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import TextPartDelta, ThinkingPart, ToolCallPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles.anthropic import AnthropicModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    THOUGHTS,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    get_weather,
)
from tests.handlers.clients.sessions.steps import URL, V1, main, step


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: Literal[1, 2, 3]


class Weather(BaseModel):
    city: str
    days: int


def chat() -> OpenAIChatModel:
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=V1, api_key="none"))


def responses() -> OpenAIResponsesModel:
    return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=V1, api_key="none"))


def messages() -> AnthropicModel:
    client = AsyncAnthropic(base_url=URL, api_key="none", max_retries=0)
    profile = AnthropicModelProfile(supports_json_schema_output=True)  # else known models only
    return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client), profile=profile)


def steps(endpoint: str, make, settings: ModelSettings) -> None:
    def agent(**options) -> Agent:
        return Agent(make(), model_settings=settings, **options)

    @step(endpoint, f"{endpoint}: run")
    async def run() -> None:
        result = await agent(system_prompt="Be brief.").run(QUESTION)
        assert result.output == ANSWER
        assert result.usage.output_tokens > 0

    @step(endpoint, f"{endpoint}: stream")
    async def stream() -> None:
        async with agent().run_stream(QUESTION) as result:
            texts = [text async for text in result.stream_text()]
        assert texts[-1] == ANSWER

    @step(endpoint, f"{endpoint}: events of a stream")
    async def events() -> None:
        deltas = []

        async def heard(context, stream) -> None:
            async for event in stream:
                if isinstance(getattr(event, "delta", None), TextPartDelta):
                    deltas.append(event.delta.content_delta)

        await agent().run(QUESTION, event_stream_handler=heard)
        assert ANSWER.endswith("".join(deltas))
        assert deltas

    @step(endpoint, f"{endpoint}: tools, and a turn after them")
    async def tools() -> None:
        speaker = agent(tools=[get_weather])
        result = await speaker.run(WEATHER_QUESTION)
        assert result.output == WEATHER_ANSWER
        parts = [part for message in result.all_messages() for part in message.parts]
        assert [part.args_as_dict() for part in parts if isinstance(part, ToolCallPart)] == [CALL]
        again = await speaker.run(WEATHER_QUESTION, message_history=result.all_messages())
        assert again.output == WEATHER_ANSWER

    @step(endpoint, f"{endpoint}: output by schema")
    async def output_by_schema() -> None:
        assert isinstance((await agent(output_type=NativeOutput(Fact)).run(QUESTION)).output, Fact)

    @step(endpoint, f"{endpoint}: output by a call")
    async def output_by_a_call() -> None:
        output = ToolOutput(Weather, name="get_weather", description="The weather of a city")
        assert (await agent(output_type=output).run(WEATHER_QUESTION)).output == Weather(**CALL)

    @step(endpoint, f"{endpoint}: thoughts, and a turn after them")
    async def thoughts() -> None:
        result = await agent().run(QUESTION)
        parts = [part for message in result.all_messages() for part in message.parts]
        assert [part.content.strip() for part in parts if isinstance(part, ThinkingPart)] == [THOUGHTS]
        assert (await agent().run(NEXT_QUESTION, message_history=result.all_messages())).output == NEXT_ANSWER


steps("chat", chat, ModelSettings())
steps("responses", responses, ModelSettings())
steps(
    "messages", messages, ModelSettings(max_tokens=2000, anthropic_thinking={"type": "enabled", "budget_tokens": 1024})
)


if __name__ == "__main__":
    main()
