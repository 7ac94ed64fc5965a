"""The official client against a real server: chats, texts, streams, tools, thinking, the model, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import ollama
import pytest

from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import MODEL, Served, serving
from tests.runtime import counting_model

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
SCRIPT = "<think>\nHe asks.\n</think>\n\nI look it up.\n\n" + CALL.format("Oslo") + "\n" + CALL.format("Rom")


@pytest.fixture
def client(served: Served) -> Iterator[ollama.Client]:
    with ollama.Client(host=served.url) as made:
        yield made


@pytest.fixture
def calling_client(calling: Served) -> Iterator[ollama.Client]:
    with ollama.Client(host=calling.url) as made:
        yield made


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that thinks, speaks and calls twice."""
    folder = counting_model.make(tmp_path_factory.mktemp("calling") / "artifact", script=SCRIPT).folder
    with serving(folder) as served:
        yield served


def test_a_chat_says_the_same_whole_and_streamed(client: ollama.Client, served: Served) -> None:
    options = {"num_predict": 12, "temperature": 0, "num_ctx": 4096}
    whole = client.chat(MODEL, HI, options=options)
    parts = list(client.chat(MODEL + ":latest", HI, options=options, stream=True))
    assert whole.message.content
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 12)
    assert parts[-1].done
    assert not any(part.done for part in parts[:-1])
    assert parts[-1].model == MODEL + ":latest"
    for answer in (whole, parts[-1]):
        assert answer.prompt_eval_count == parts[-1].prompt_eval_count
        assert 0 < (answer.eval_duration or 0) <= (answer.total_duration or 0)
    with served.client() as openai:
        said = openai.chat.completions.create(model=MODEL, messages=HI, max_tokens=12, temperature=0)
    assert said.choices[0].message.content == whole.message.content


def test_thinking_and_calls_have_their_places(calling_client: ollama.Client) -> None:
    whole = calling_client.chat(MODEL, HI, tools=[WEATHER], think=True)
    assert (whole.message.thinking or "").strip() == "He asks."
    assert whole.message.content == "I look it up."
    calls = [(call.function.name, dict(call.function.arguments)) for call in whole.message.tool_calls or ()]
    assert calls == [("weather", {"city": city, "days": 3}) for city in ("Oslo", "Rom")]
    assert whole.done_reason == "stop"
    parts = list(calling_client.chat(MODEL, HI, tools=[WEATHER], think="low", stream=True))
    assert "".join(part.message.thinking or "" for part in parts).strip() == "He asks."
    streamed = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, dict(call.function.arguments)) for call in streamed] == calls
    result = {"role": "tool", "content": "rain", "tool_name": "weather"}
    assert calling_client.chat(MODEL, [*HI, whole.message, result], tools=[WEATHER]).message.content


def test_a_call_that_is_cut_off_has_what_there_is(calling_client: ollama.Client) -> None:
    for limit in range(20, 200, 12):
        answer = calling_client.chat(MODEL, HI, tools=[WEATHER], options={"num_predict": limit})
        for call in answer.message.tool_calls or ():
            assert isinstance(call.function.arguments, dict)


def test_texts_raw_and_through_the_template(client: ollama.Client, served: Served) -> None:
    options = {"num_predict": 8, "temperature": 0}
    raw = client.generate(MODEL, "One, two,", raw=True, options=options)
    with served.client() as openai:
        expected = (
            openai.completions.create(model=MODEL, prompt="One, two,", max_tokens=8, temperature=0).choices[0].text
        )
    assert raw.response == expected
    assert "".join(part.response or "" for part in client.generate(MODEL, "Hi", options=options, stream=True)) == (
        client.chat(MODEL, HI, options=options).message.content
    )
    assert client.generate(MODEL, "Hi", system="Be brief.", options=options).response
    assert (client.generate(MODEL, "").done_reason, client.chat(MODEL, []).done_reason) == ("load", "load")


def test_a_form_is_followed(client: ollama.Client) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    answer = client.chat(MODEL, HI, format=schema, options={"temperature": 2, "seed": 3, "num_predict": 300})
    assert json.loads(answer.message.content or "")["ok"] in ("yes", "no")


def test_the_async_client(served: Served) -> None:
    async def ask() -> str:
        async with ollama.AsyncClient(host=served.url) as client:
            stream = await client.chat(MODEL, HI, options={"num_predict": 5}, stream=True)
            return "".join([part.message.content or "" async for part in stream])

    assert asyncio.run(ask())


def test_the_model_is_listed_and_shown(client: ollama.Client, served: Served) -> None:
    (model,) = client.list().models
    assert model.model == MODEL
    assert (model.size or 0) > 0
    shown = client.show(MODEL)
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert served.engine.max_model_len in (shown.modelinfo or {}).values()
    assert [each.model for each in client.ps().models] == [MODEL]
    with served.http() as http:
        assert http.get("/api/version").json()["version"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": "", "images": ["x"]}]}, "images"),
        ({"options": {"mirostat": 1}}, "mirostat"),
        ({"options": {"num_predict": 0}}, "num_predict"),
        ({"options": {"temperature": -1}}, "temperature"),
        ({"options": {"wish": 1}}, "wish"),
        ({"logprobs": True}, "logprobs"),
        ({"wish": 1}, "wish"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(served: Served, fields: dict[str, Any], named: str) -> None:
    with served.http() as http:
        answer = http.post("/api/chat", json={"model": MODEL, "messages": HI, **fields})
        assert answer.status_code == 400
        assert named in answer.json()["error"]


def test_what_changes_models_is_not_supported(client: ollama.Client) -> None:
    for ask in (partial(client.pull, "x"), partial(client.copy, "x", "y"), partial(client.delete, "x")):
        with pytest.raises(ollama.ResponseError, match="serves one model") as refusal:
            ask()
        assert refusal.value.status_code == 501
    with pytest.raises(ollama.ResponseError, match="there is no model") as refusal:
        client.chat("llama", HI)
    assert refusal.value.status_code == 404


def test_a_key_is_needed_where_there_is_one(served: Served) -> None:
    settings = ServerSettings(api_key="secret", shutdown_seconds=0.5)
    with serving(served.engine.artifact.folder, settings=settings) as locked:
        with ollama.Client(host=locked.url) as stranger, pytest.raises(ollama.ResponseError, match="key"):
            stranger.list()
        with ollama.Client(host=locked.url, headers={"authorization": "Bearer secret"}) as user:
            assert user.list().models
