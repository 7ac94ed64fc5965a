"""The official client against a real server: messages, streams, tools, thinking, counts, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import MODEL, Served, serving
from tests.runtime import counting_model

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
SCRIPT = "<think>\nHe asks.\n</think>\n\nI look it up.\n\n" + CALL.format("Oslo") + "\n" + CALL.format("Rom")


def client_of(served: Served, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that thinks, speaks and calls twice."""
    folder = counting_model.make(tmp_path_factory.mktemp("calling") / "artifact", script=SCRIPT).folder
    with serving(folder) as served:
        yield served


def test_a_message_says_what_the_chat_says(served: Served) -> None:
    with client_of(served) as client, served.client() as openai:
        message = client.messages.create(model=MODEL, max_tokens=12, messages=HI)
        chat: Any = openai.chat.completions.create(model=MODEL, max_tokens=12, messages=HI)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == chat.choices[0].message.content  # type: ignore[union-attr]
    assert (message.role, message.model, message.stop_reason) == ("assistant", MODEL, "max_tokens")
    usage = message.usage
    assert usage.output_tokens == 12
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == chat.usage.prompt_tokens
    assert message.id.startswith("msg_")
    assert message._request_id


def test_a_stream_adds_up_to_the_message(calling: Served) -> None:
    fields: Any = {"model": MODEL, "max_tokens": 300, "messages": HI, "tools": [WEATHER]}
    with client_of(calling) as client:
        whole = client.messages.create(**fields)
        with client.messages.stream(**fields) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()
    plain = [_without_ids(block.model_dump()) for block in whole.content]
    assert plain == [_without_ids(block.model_dump()) for block in streamed.content]
    assert [block["type"] for block in plain] == ["thinking", "text", "tool_use", "tool_use"]
    assert plain[0]["thinking"].strip() == "He asks."
    assert plain[2]["input"] == {"city": "Oslo", "days": 3}
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def _without_ids(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "id"}


def test_the_events_have_names_and_begin_with_usage_and_a_ping(calling: Served) -> None:
    asked = {"model": MODEL, "max_tokens": 300, "messages": HI, "tools": [WEATHER], "stream": True}
    with calling.http() as http:
        http.post("/v1/messages", json=asked)  # fills the cache
        answer = http.post(
            "/v1/messages?beta=true", json=asked, headers={"anthropic-beta": "x", "anthropic-version": "1"}
        )
    blocks = [block.split("\n", 1) for block in answer.text.removesuffix("\n\n").split("\n\n")]
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]
    start, end = events[0][1]["message"]["usage"], events[-2][1]["usage"]
    assert start["cache_read_input_tokens"] == end["cache_read_input_tokens"] > 0
    assert start["input_tokens"] == end["input_tokens"]
    opened: list[int] = []
    for name, data in events:
        if name == "content_block_start":
            assert data["index"] == len(opened)
            opened.append(data["index"])
        elif name in ("content_block_delta", "content_block_stop"):
            assert data["index"] == opened[-1]
    deltas = [data["delta"]["type"] for name, data in events if name == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_a_tools_round_goes_back_as_it_came_and_its_tokens_are_found(calling: Served) -> None:
    fields: Any = {"model": MODEL, "max_tokens": 300, "tools": [WEATHER], "thinking": {"type": "adaptive"}}
    with client_of(calling) as client:
        asked = [{"role": "user", "content": "How is the weather in Oslo and in Rome? " * 3}]
        first = client.messages.create(messages=asked, **fields)  # type: ignore[arg-type]
        calls = [block for block in first.content if block.type == "tool_use"]
        results = [
            {"type": "tool_result", "tool_use_id": calls[0].id, "content": "rain"},
            {
                "type": "tool_result",
                "tool_use_id": calls[1].id,
                "is_error": True,
                "content": [{"type": "text", "text": "x"}],
            },
            {"type": "text", "text": "So?"},
        ]
        history = [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        second = client.messages.create(messages=history, **fields)  # type: ignore[arg-type]
    prompt = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    assert (second.usage.cache_read_input_tokens or 0) >= 0.8 * prompt  # the template's last lines are the answer's


def test_a_given_beginning_is_continued(served: Served) -> None:
    with client_of(served) as client:
        alone = client.messages.count_tokens(model=MODEL, messages=HI).input_tokens
        begun = [*HI, {"role": "assistant", "content": "abc"}]
        assert client.messages.count_tokens(model=MODEL, messages=begun).input_tokens == alone + 3
        assert client.messages.create(model=MODEL, max_tokens=3, messages=begun).usage.output_tokens == 3


def test_a_stop_sequence_is_named(served: Served) -> None:
    with client_of(served) as client:
        text: Any = client.messages.create(model=MODEL, max_tokens=12, messages=HI).content[0]
        stop = text.text[4:7]
        cut: Any = client.messages.create(model=MODEL, max_tokens=12, messages=HI, stop_sequences=["\x02", stop])
        assert (cut.stop_reason, cut.stop_sequence, cut.content[0].text) == ("stop_sequence", stop, text.text[:4])


def test_a_form_is_followed_and_tools_can_be_forced(served: Served) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    with client_of(served) as client:
        config: Any = {"format": {"type": "json_schema", "schema": schema}}
        answer: Any = client.messages.create(model=MODEL, max_tokens=400, messages=HI, output_config=config)
        assert json.loads(answer.content[0].text)["ok"] in ("yes", "no")
        tool: Any = {"name": "pick", "input_schema": schema, "strict": True}
        for kind in ({"type": "any"}, {"type": "tool", "name": "pick"}):
            choice = {**kind, "disable_parallel_tool_use": True}
            asked: Any = {
                "model": MODEL,
                "max_tokens": 400,
                "messages": HI,
                "tools": [tool],
                "tool_choice": choice,
                "extra_body": {"temperature": 2},
            }
            forced: Any = client.messages.create(**asked)
            assert forced.content[-1].input["ok"] in ("yes", "no")
            assert forced.stop_reason == "tool_use"


def test_the_async_client_and_count_tokens(served: Served) -> None:
    async def ask() -> tuple[str, int]:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as client:
            async with client.messages.stream(model=MODEL, max_tokens=5, messages=HI) as stream:
                text = "".join([text async for text in stream.text_stream])
            counted = await client.messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
            return text, counted.input_tokens

    text, counted = asyncio.run(ask())
    assert text
    with client_of(served) as client:
        said = client.messages.create(model=MODEL, max_tokens=1, messages=HI, system="Be brief.").usage
    assert counted == said.input_tokens + (said.cache_read_input_tokens or 0)


def test_errors_have_anthropics_form_on_all_its_paths(counting_folder: Path) -> None:
    with serving(counting_folder, settings=ServerSettings(api_key="secret")) as served:
        with client_of(served, "secret") as client:
            assert client.messages.create(model=MODEL, max_tokens=1, messages=HI).content
            with pytest.raises(anthropic.NotFoundError) as missing:
                client.messages.create(model="haiku", max_tokens=1, messages=HI)
            assert _error(missing.value.response)["type"] == "not_found_error"
        with client_of(served, "wrong") as client, pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model=MODEL, max_tokens=1, messages=HI)
        with served.http() as http:
            headers = {"authorization": "Bearer secret"}
            assert http.get("/v1/messages/batches", headers=headers).status_code == 404
            for answer, status in (
                (http.post("/v1/messages", json={}), 401),
                (http.post("/v1/messages/nothing", json={}, headers=headers), 404),
                (http.get("/v1/messages", headers=headers), 405),
                (http.post("/v1/messages", json={}, headers=headers), 400),
            ):
                assert answer.status_code == status
                assert _error(answer)["message"]


def _error(response: Any) -> dict[str, str]:
    body = response.json()
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] != ""
    error: dict[str, str] = body["error"]
    return error
