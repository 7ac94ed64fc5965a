# mypy: ignore-errors
"""litellm: chat completions by two of its providers, completions, responses, messages."""

from __future__ import annotations

import asyncio
import json

import litellm

from tests.handlers.clients.sessions.questions import (
    ANSWER,
    CALL,
    FACT,
    MODEL,
    NEXT_ANSWER,
    NEXT_QUESTION,
    PARAMETERS,
    QUESTION,
    THOUGHTS,
    TOOLS,
    USER,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_USER,
    is_fact,
)
from tests.handlers.clients.sessions.steps import URL, V1, main, step

OPENAI = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": "none"}
ANTHROPIC = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "none", "max_tokens": 500}
FORM = {"type": "json_schema", "json_schema": {"name": "fact", "schema": FACT, "strict": True}}


def chat_steps(provider: str) -> None:
    common = {"model": f"{provider}/{MODEL}", "api_base": V1, "api_key": "none"}

    @step("chat", f"{provider}: whole")
    def whole() -> None:
        message = litellm.completion(messages=USER, **common).choices[0].message
        assert (message.content, message.reasoning_content) == (ANSWER, THOUGHTS)

    @step("chat", f"{provider}: streamed")
    def streamed() -> None:
        deltas = [chunk.choices[0].delta for chunk in litellm.completion(messages=USER, stream=True, **common)]
        assert "".join(delta.content or "" for delta in deltas) == ANSWER
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHTS

    @step("chat", f"{provider}: round of tools, its message sent back whole")
    def round_of_tools() -> None:
        message = litellm.completion(messages=WEATHER_USER, tools=TOOLS, **common).choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == CALL
        result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": json.dumps(WEATHER)}
        second = litellm.completion(messages=[*WEATHER_USER, message, result], tools=TOOLS, **common)
        assert second.choices[0].message.content == WEATHER_ANSWER

    @step("chat", f"{provider}: schema")
    def schema() -> None:
        assert is_fact(litellm.completion(messages=USER, response_format=FORM, **common).choices[0].message.content)


chat_steps("openai")
chat_steps("hosted_vllm")


@step("chat")
async def asynchronous() -> None:
    whole, stream = await asyncio.gather(
        litellm.acompletion(messages=USER, reasoning_effort="low", **OPENAI),
        litellm.acompletion(messages=USER, stream=True, **OPENAI),
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert whole.choices[0].message.content == text == ANSWER


@step("completions")
def text() -> None:
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    common = {**OPENAI, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(prompt=prompt, **common).choices[0].text == ANSWER
    assert "".join(part.choices[0].text or "" for part in litellm.text_completion(prompt=prompt, stream=True, **common))


@step("responses")
def response() -> None:
    assert litellm.responses(input=QUESTION, **OPENAI).output_text == ANSWER


@step("responses")
def response_streamed() -> None:
    events = litellm.responses(input=QUESTION, stream=True, **OPENAI)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER


@step("messages")
def message() -> None:
    assert litellm.completion(messages=USER, **ANTHROPIC).choices[0].message.content == ANSWER


@step("messages")
def message_streamed_with_thinking() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    # Without the last field litellm refuses thinking of a model that it does not know.
    fields = {**ANTHROPIC, "max_tokens": 2000, "thinking": thinking, "allowed_openai_params": ["thinking"]}
    deltas = [chunk.choices[0].delta for chunk in litellm.completion(messages=USER, stream=True, **fields)]
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas).strip() == THOUGHTS


@step("messages")
def message_round_of_tools() -> None:
    message = litellm.completion(messages=WEATHER_USER, tools=TOOLS, **ANTHROPIC).choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == CALL
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps(WEATHER)}
    second = litellm.completion(messages=[*WEATHER_USER, message, result], tools=TOOLS, **ANTHROPIC)
    assert second.choices[0].message.content == WEATHER_ANSWER


@step("messages")
async def messages_as_anthropics_client_has_them() -> None:
    tool = {"name": "get_weather", "description": "The weather of a city", "input_schema": PARAMETERS}
    message = await litellm.anthropic.messages.acreate(messages=WEATHER_USER, tools=[tool], **ANTHROPIC)
    assert message["content"][-1]["input"] == CALL


@step("messages")
def two_turns() -> None:
    history = [*USER, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT_QUESTION}]
    assert litellm.completion(messages=history, **ANTHROPIC).choices[0].message.content == NEXT_ANSWER


if __name__ == "__main__":
    main()
