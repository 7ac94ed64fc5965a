# mypy: ignore-errors
"""dspy's language model: chat completions, completions, responses."""

from __future__ import annotations

import dspy

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    THOUGHTS,
    TOOL,
    WEATHER_QUESTION,
)
from tests.handlers.clients.sessions.steps import V1, main, step


def model(kind: str, **options) -> dspy.LM:
    return dspy.LM(f"openai/{MODEL}", api_base=V1, api_key="none", model_type=kind, cache=False, **options)


@step("chat")
def whole() -> None:
    (answer,) = model("chat")(QUESTION)
    assert (answer["text"], answer["reasoning_content"]) == (ANSWER, THOUGHTS)


@step("chat")
def two_turns() -> None:
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": NEXT_QUESTION},
    ]
    (answer,) = model("chat")(messages=messages)
    assert answer["text"] == NEXT_ANSWER


@step("chat")
def several_answers() -> None:
    answers = model("chat")(QUESTION, n=2)
    assert [answer["text"] for answer in answers] == [ANSWER] * 2


@step("chat")
def call() -> None:
    (answer,) = model("chat")(WEATHER_QUESTION, tools=[{"type": "function", "function": TOOL}])
    (called,) = answer["tool_calls"]
    assert called["function"]["name"] == "get_weather"
    assert all(str(value) in str(called["function"]["arguments"]) for value in CALL.values())


@step("chat")
async def asynchronous() -> None:
    (answer,) = await model("chat").acall(QUESTION)
    assert answer["text"] == ANSWER


@step("completions")
def text() -> None:
    (answer,) = model("text", max_tokens=12)(QUESTION)
    assert answer["text"] if isinstance(answer, dict) else answer


@step("responses")
def response() -> None:
    (answer,) = model("responses")(QUESTION)
    assert (answer["text"], answer["reasoning_content"]) == (ANSWER, THOUGHTS)


@step("responses")
async def response_asynchronous() -> None:
    (answer,) = await model("responses").acall(QUESTION)
    assert answer["text"] == ANSWER


if __name__ == "__main__":
    main()
