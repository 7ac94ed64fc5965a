# mypy: ignore-errors
"""Sessions of Python's frameworks with /v1/responses of a scripted server: python responses_session.py URL.

It runs in an interpreter that has the frameworks, and fails if a step does. python.py says how they are installed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from typing import Literal

import dspy
import litellm
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import NativeOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticModel
from pydantic_ai.providers.openai import OpenAIProvider

URL = f"{sys.argv[1]}/v1"
NAME, AFTER = "Ujerumani it is.", "It is sunny."
STEPS: list[Callable[[], None]] = []


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: int


FACT = Fact(country="Kenya", days=3)


def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"sunny in {city} for {days} days"


def step(run: Callable[[], None]) -> Callable[[], None]:
    STEPS.append(run)
    return run


def openai_agent(**options) -> Agent:
    client = AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
    return Agent(name="agent", model=OpenAIResponsesModel(model="m", openai_client=client), **options)


async def agents_answer(agent: Agent, text) -> str:
    return (await Runner.run(agent, text)).final_output


@step
def agents_run() -> None:
    assert asyncio.run(agents_answer(openai_agent(), "Germany?")) == NAME


@step
def agents_tools() -> None:
    assert asyncio.run(agents_answer(openai_agent(tools=[function_tool(get_weather)]), "Weather?")) == AFTER


@step
def agents_tools_with_encrypted_reasoning() -> None:
    settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"])
    agent = openai_agent(tools=[function_tool(get_weather)], model_settings=settings)
    assert asyncio.run(agents_answer(agent, "Weather?")) == AFTER


@step
def agents_stream() -> None:
    async def run() -> None:
        result = Runner.run_streamed(openai_agent(tools=[function_tool(get_weather)]), "Weather?")
        events = [event.type async for event in result.stream_events()]
        assert "run_item_stream_event" in events
        assert result.final_output == AFTER

    asyncio.run(run())


@step
def agents_output_type() -> None:
    assert asyncio.run(agents_answer(openai_agent(output_type=Fact), "JSON please")) == FACT


@step
def agents_two_turns() -> None:
    async def run() -> None:
        agent = openai_agent(instructions="Be brief.")
        first = await Runner.run(agent, "Germany?")
        question = {"role": "user", "content": "And again?"}
        assert await agents_answer(agent, [*first.to_input_list(), question]) == NAME

    asyncio.run(run())


def langchain(**options) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=URL, api_key="none", use_responses_api=True, max_retries=0, **options)


@step
def langchain_invoke() -> None:
    message = langchain().invoke("Germany?")
    assert message.text == NAME
    assert message.content[0]["summary"][0]["text"] == "He asks."


@step
def langchain_stream() -> None:
    assert "".join(chunk.text for chunk in langchain().stream("Germany?")) == NAME


def langchain_tools(stream: bool) -> None:
    bound = langchain().bind_tools([StructuredTool.from_function(get_weather)])
    messages = [HumanMessage("Weather?")]
    if stream:
        call = None
        for chunk in bound.stream(messages):
            call = chunk if call is None else call + chunk
    else:
        call = bound.invoke(messages)
    assert call.tool_calls[0]["args"] == {"city": "Oslo", "days": 3}
    result = ToolMessage("sunny", tool_call_id=call.tool_calls[0]["id"])
    assert bound.invoke([*messages, call, result]).text == AFTER


@step
def langchain_tools_whole() -> None:
    langchain_tools(stream=False)


@step
def langchain_tools_streamed() -> None:
    langchain_tools(stream=True)


@step
def langchain_structured() -> None:
    assert langchain().with_structured_output(Fact, method="json_schema").invoke("JSON please") == FACT


@step
def langchain_two_turns_with_encrypted_reasoning() -> None:
    model = langchain(output_version="responses/v1", include=["reasoning.encrypted_content"], store=False)
    first = model.invoke("Germany?")
    assert model.invoke([HumanMessage("Germany?"), first, HumanMessage("And again?")]).text == NAME


def pydantic_agent(**options) -> PydanticAgent:
    return PydanticAgent(PydanticModel("m", provider=OpenAIProvider(base_url=URL, api_key="none")), **options)


@step
def pydantic_run() -> None:
    assert pydantic_agent().run_sync("Germany?").output == NAME


@step
def pydantic_tools_and_history() -> None:
    agent = pydantic_agent(tools=[get_weather])
    result = agent.run_sync("Weather?")
    assert result.output == AFTER
    parts = [part for message in result.all_messages() for part in message.parts]
    assert [part.content for part in parts if isinstance(part, ThinkingPart)] == ["A tool.", "I see."]
    assert agent.run_sync("Germany?", message_history=result.all_messages()).output == NAME


@step
def pydantic_stream() -> None:
    async def run() -> None:
        async with pydantic_agent().run_stream("Germany?") as result:
            texts = [text async for text in result.stream_text()]
        assert texts[-1] == NAME

    asyncio.run(run())


@step
def pydantic_native_output() -> None:
    assert pydantic_agent(output_type=NativeOutput(Fact)).run_sync("JSON please").output == FACT


@step
def litellm_whole_and_streamed() -> None:
    common = {"model": "openai/m", "input": "Germany?", "api_base": URL, "api_key": "none"}
    assert litellm.responses(**common).output_text == NAME
    events = litellm.responses(**common, stream=True)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == NAME


@step
def dspy_language_model() -> None:
    model = dspy.LM("openai/m", api_base=URL, api_key="none", model_type="responses", cache=False)
    (answer,) = model("Germany?")
    assert (answer["text"], answer["reasoning_content"]) == (NAME, "He asks.")


def main() -> int:
    set_tracing_disabled(True)
    os.environ["OPENAI_API_KEY"] = "none"
    failed = 0
    for run in STEPS:
        try:
            run()
        except Exception:  # noqa: BLE001 - every step is told
            failed += 1
            print(f"FAILED {run.__name__}\n{traceback.format_exc()}")
    print(f"{len(STEPS) - failed} passed, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
