# mypy: ignore-errors
"""llm: its models for chat completions and responses."""

from __future__ import annotations

import llm
from llm.default_plugins.openai_models import AsyncChat, Chat, Responses

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    FACT,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    QUESTION,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    get_weather,
    is_fact,
)
from tests.handlers.clients.sessions.steps import V1, main, step


def made(kind):
    options = {"model_name": MODEL, "api_base": V1, "supports_schema": True, "supports_tools": True}
    model = kind(MODEL, **options)
    model.key = "none"
    return model


def steps(endpoint: str, kind) -> None:
    @step(endpoint, f"{endpoint}: whole")
    def whole() -> None:
        assert made(kind).prompt(QUESTION, stream=False).text() == ANSWER

    @step(endpoint, f"{endpoint}: streamed")
    def streamed() -> None:
        assert "".join(made(kind).prompt(QUESTION, system="Be brief.")) == ANSWER

    @step(endpoint, f"{endpoint}: schema")
    def schema() -> None:
        assert is_fact(made(kind).prompt(QUESTION, schema=FACT).text())

    @step(endpoint, f"{endpoint}: chain of tools")
    def chain_of_tools() -> None:
        assert (
            made(kind).chain(WEATHER_QUESTION, tools=[llm.Tool.function(get_weather)]).text().endswith(WEATHER_ANSWER)
        )

    @step(endpoint, f"{endpoint}: two turns")
    def two_turns() -> None:
        conversation = made(kind).conversation()
        assert conversation.prompt(QUESTION).text() == ANSWER
        assert conversation.prompt(NEXT_QUESTION).text() == NEXT_ANSWER


steps("chat", Chat)
steps("responses", Responses)


@step("chat")
async def asynchronous() -> None:
    assert await made(AsyncChat).prompt(QUESTION).text() == ANSWER


if __name__ == "__main__":
    main()
