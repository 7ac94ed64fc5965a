# mypy: ignore-errors
"""LangChain's models: ChatOpenAI by chat completions and by responses, OpenAI, ChatAnthropic."""

from __future__ import annotations

import json
from typing import Literal

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    THOUGHTS,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    get_weather,
)
from tests.handlers.clients.sessions.steps import URL, V1, main, step

TOOL = StructuredTool.from_function(get_weather)
OPENAI = {"model": MODEL, "base_url": V1, "api_key": "none", "max_retries": 0}


class Fact(BaseModel):
    """A fact."""

    country: Literal["Germany", "Kenya"]
    days: Literal[1, 2, 3]  # Anthropic's client leaves bounds out of schemas


class Weather(BaseModel):
    """The weather of a city"""

    city: str
    days: int


Weather.__name__ = "get_weather"


def chat(**options) -> ChatOpenAI:
    return ChatOpenAI(**OPENAI, **options)


def responses(**options) -> ChatOpenAI:
    return ChatOpenAI(**OPENAI, use_responses_api=True, **options)


def messages(**options) -> ChatAnthropic:
    return ChatAnthropic(model=MODEL, base_url=URL, api_key="none", max_retries=0, max_tokens=2000, **options)


def steps(endpoint: str, make) -> None:
    @step(endpoint, f"{endpoint}: invoke")
    def invoke() -> None:
        message = make().invoke([("system", "Be brief."), ("human", QUESTION)])
        assert message.text == ANSWER
        assert message.usage_metadata["output_tokens"] > 0

    @step(endpoint, f"{endpoint}: stream")
    def stream() -> None:
        assert "".join(chunk.text for chunk in make().stream(QUESTION)) == ANSWER

    @step(endpoint, f"{endpoint}: asynchronous, whole and streamed")
    async def asynchronous() -> None:
        assert (await make().ainvoke(QUESTION)).text == ANSWER
        assert "".join([chunk.text async for chunk in make().astream(QUESTION)]) == ANSWER

    @step(endpoint, f"{endpoint}: batch")
    def batch() -> None:
        assert [message.text for message in make().batch([QUESTION, NEXT_QUESTION])] == [ANSWER, NEXT_ANSWER]

    @step(endpoint, f"{endpoint}: round of tools")
    def round_of_tools() -> None:
        bound = make().bind_tools([TOOL])
        call = bound.invoke([HumanMessage(WEATHER_QUESTION)])
        finish(bound, call)

    @step(endpoint, f"{endpoint}: round of tools, streamed")
    def round_of_tools_streamed() -> None:
        bound = make().bind_tools([TOOL])
        call = None
        for chunk in bound.stream([HumanMessage(WEATHER_QUESTION)]):
            call = chunk if call is None else call + chunk
        finish(bound, call)

    @step(endpoint, f"{endpoint}: structured by schema")
    def structured() -> None:
        assert isinstance(make().with_structured_output(Fact, method="json_schema").invoke(QUESTION), Fact)

    @step(endpoint, f"{endpoint}: structured by a call")
    def structured_by_a_call() -> None:
        model = make().with_structured_output(Weather, method="function_calling")
        assert model.invoke(WEATHER_QUESTION) == Weather(**CALL)

    @step(endpoint, f"{endpoint}: two turns")
    def two_turns() -> None:
        first = make().invoke(QUESTION)
        assert make().invoke([HumanMessage(QUESTION), first, HumanMessage(NEXT_QUESTION)]).text == NEXT_ANSWER


def finish(bound, call) -> None:
    assert call.tool_calls[0]["args"] == CALL
    result = ToolMessage(json.dumps(WEATHER), tool_call_id=call.tool_calls[0]["id"])
    assert bound.invoke([HumanMessage(WEATHER_QUESTION), call, result]).text == WEATHER_ANSWER


steps("chat", chat)
steps("responses", responses)
steps("messages", messages)


@step("chat")
def log_probabilities() -> None:
    assert chat(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]["content"]


@step("responses")
def reasoning_is_shown() -> None:
    assert responses().invoke(QUESTION).content[0]["summary"][0]["text"] == THOUGHTS


@step("responses")
def two_turns_with_encrypted_reasoning() -> None:
    model = responses(output_version="responses/v1", include=["reasoning.encrypted_content"], store=False)
    first = model.invoke(QUESTION)
    assert model.invoke([HumanMessage(QUESTION), first, HumanMessage(NEXT_QUESTION)]).text == NEXT_ANSWER


@step("messages")
def thinking_and_its_round_of_tools() -> None:
    bound = messages(thinking={"type": "enabled", "budget_tokens": 1024}).bind_tools([TOOL])
    call = bound.invoke([HumanMessage(WEATHER_QUESTION)])
    assert call.content[0]["thinking"].strip() == "I call get_weather."
    finish(bound, call)


@step("messages/count_tokens")
def tokens_are_counted() -> None:
    assert messages().get_num_tokens_from_messages([HumanMessage(QUESTION)]) > 5


@step("completions")
def text() -> None:
    model = OpenAI(**OPENAI, max_tokens=20)
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert model.invoke(prompt) == ANSWER
    assert "".join(model.stream(prompt)) == ANSWER


if __name__ == "__main__":
    main()
