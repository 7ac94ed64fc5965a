# mypy: ignore-errors
"""llama-index: OpenAILike by chat completions and by completions, and its model for responses."""

from __future__ import annotations

import json
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    get_weather,
)
from tests.handlers.clients.sessions.steps import V1, main, step

TOOL = FunctionTool.from_defaults(get_weather, description="The weather of a city")
USER = [ChatMessage(role="user", content=QUESTION)]


class Fact(BaseModel):
    country: Literal["Germany", "Kenya"]
    days: Literal[1, 2, 3]


def model(**options) -> OpenAILike:
    common = {"model": MODEL, "api_base": V1, "api_key": "none", "max_retries": 0, "context_window": 16_384}
    return OpenAILike(**common, **{"is_chat_model": True, "is_function_calling_model": True, **options})


@step("chat")
def whole() -> None:
    assert model().chat([ChatMessage(role="system", content="Be brief."), *USER]).message.content == ANSWER


@step("chat")
def streamed() -> None:
    assert "".join(part.delta for part in model().stream_chat(USER)) == ANSWER


@step("chat")
async def asynchronous() -> None:
    assert (await model().achat(USER)).message.content == ANSWER
    assert "".join([part.delta async for part in await model().astream_chat(USER)]) == ANSWER


@step("chat")
def completed() -> None:
    assert model().complete(QUESTION).text == ANSWER


@step("chat")
def round_of_tools() -> None:
    speaker = model()
    first = speaker.chat_with_tools([TOOL], user_msg=WEATHER_QUESTION)
    (call,) = speaker.get_tool_calls_from_response(first)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", CALL)
    result = ChatMessage(role="tool", content=json.dumps(WEATHER), additional_kwargs={"tool_call_id": call.tool_id})
    history = [ChatMessage(role="user", content=WEATHER_QUESTION), first.message, result]
    assert speaker.chat_with_tools([TOOL], chat_history=history).message.content == WEATHER_ANSWER


@step("chat")
def call_streamed() -> None:
    speaker = model()
    *_, last = speaker.stream_chat_with_tools([TOOL], user_msg=WEATHER_QUESTION)
    (call,) = speaker.get_tool_calls_from_response(last)
    assert call.tool_kwargs == CALL


@step("chat")
def structured() -> None:
    speaker = model(should_use_structured_outputs=True)
    assert isinstance(speaker.as_structured_llm(Fact).chat(USER).raw, Fact)


@step("chat")
def two_turns() -> None:
    history = [*USER, model().chat(USER).message, ChatMessage(role="user", content=NEXT_QUESTION)]
    assert model().chat(history).message.content == NEXT_ANSWER


@step("completions")
def text() -> None:
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    speaker = model(is_chat_model=False, is_function_calling_model=False, max_tokens=20)
    assert speaker.complete(prompt).text == ANSWER
    assert "".join(part.delta for part in speaker.stream_complete(prompt)) == ANSWER


if __name__ == "__main__":
    main()
