"""The official client against a real server: the server accepts its requests, and it reads the answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from qwonnx.handlers.settings import ServerSettings
from tests.handlers.responses.bodies import AGENTS, PATCH, WEATHER
from tests.handlers.serving import MODEL, Served, paced, serving, until
from tests.runtime import counting_model

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CALL = "<tool_call>\n<function={}>\n<parameter={}>\n{}\n</parameter>\n</function>\n</tool_call>"
SCRIPT = "<think>\nHe asks.\n</think>\n\nI look it up.\n\n" + CALL.format("weather", "city", "Oslo")
TOOLS: Any = [WEATHER]


def expected(served: Served, text: str, num_tokens: int) -> str:
    """The answer of the counting model."""
    tokenizer = served.engine.tokenizer
    model = counting_model.CountingModel(served.engine.artifact.folder, tokenizer, 1, None)
    return tokenizer.decode(model.answer(tokenizer.encode(PROMPT.format(text)), num_tokens))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = counting_model.make(tmp_path_factory.mktemp("scripted") / "artifact", script=SCRIPT).folder
    with serving(folder) as served:
        yield served


def test_an_answer_in_one_piece(served: Served) -> None:
    with served.client() as client:
        response = client.responses.create(model=MODEL, input="Hi", max_output_tokens=12)
    assert response.output_text == expected(served, "Hi", 12)
    assert (response.status, response.model, response.model_dump()["store"]) == ("incomplete", MODEL, False)
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    assert response.usage.input_tokens == len(served.engine.tokenizer.encode(PROMPT.format("Hi")))


def test_a_stream_says_the_same_piece_by_piece(served: Served) -> None:
    with served.client() as client:
        events = list(client.responses.create(model=MODEL, input="Hi", max_output_tokens=12, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 5
    assert "".join(deltas) == expected(served, "Hi", 12)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == "".join(deltas)


def test_concurrent_requests_of_the_async_client_get_the_answers_they_get_alone(served: Served) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        text, length = f"Question {number}", 10 + number
        if number % 2:
            response = await client.responses.create(model=MODEL, input=text, max_output_tokens=length)
            return response.output_text
        stream = await client.responses.create(model=MODEL, input=text, max_output_tokens=length, stream=True)
        return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    async def main() -> list[str]:
        async with served.async_client() as client:
            return await asyncio.gather(*(ask(client, number) for number in range(8)))

    assert asyncio.run(main()) == [expected(served, f"Question {number}", 10 + number) for number in range(8)]


def test_a_round_of_tools_with_reasoning_sent_back_in_every_form(scripted: Served) -> None:
    """Turn by turn, and each turn finds the prompt before it in the cache."""
    instructions = "You look up the weather for whoever asks, and you are brief about it. " * 4
    with scripted.client() as client:
        for include in ([], ["reasoning.encrypted_content"]):
            first: Any = [{"role": "user", "content": f"What is the weather? {include}"}]
            common: dict[str, Any] = {
                "model": MODEL,
                "tools": TOOLS,
                "include": include,
                "store": False,
                "instructions": instructions,
            }
            response = client.responses.create(input=first, **common)
            thought, said, called = response.output
            assert (thought.type, said.type, called.type) == ("reasoning", "message", "function_call")
            assert thought.type == "reasoning"
            assert thought.content is not None
            assert thought.content[0].text == thought.summary[0].text == "He asks."
            assert (thought.encrypted_content is not None) == bool(include)
            assert response.output_text == "I look it up."
            assert called.type == "function_call"
            assert json.loads(called.arguments) == {"city": "Oslo"}
            output = {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"}
            as_objects = [*first, *response.output, output]
            as_dicts = [*first, *(item.model_dump() for item in response.output), output]
            without_nulls = [*first, *(item.model_dump(exclude_none=True) for item in response.output), output]
            for items in (as_objects, as_dicts, without_nulls):
                second = client.responses.create(input=items, **common)
                assert second.status == "completed"
                assert response.usage is not None
                assert second.usage is not None
                cached = second.usage.input_tokens_details.cached_tokens
                assert cached >= 0.95 * response.usage.input_tokens


def test_the_clients_own_stream_and_its_items_are_understood(scripted: Served) -> None:
    with scripted.client() as client:
        with client.responses.stream(model=MODEL, input="Hi", tools=TOOLS) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_response()
        assert {"response.output_text.delta", "response.function_call_arguments.delta", "response.completed"} <= kinds
        assert "response.reasoning_summary_text.delta" in kinds
        items: Any = [{"role": "user", "content": "Hi"}, *final.output]
        items.append({"type": "function_call_output", "call_id": final.output[-1].call_id, "output": "sunny"})  # type: ignore[union-attr]
        assert client.responses.create(model=MODEL, input=items, tools=TOOLS).output
        again = [item.model_dump() if hasattr(item, "model_dump") else item for item in items]
        assert client.responses.create(model=MODEL, input=again, tools=TOOLS).output


def test_calls_of_namespaces_and_custom_tools_are_named_back(tmp_path: Path) -> None:
    script = CALL.format("agents__close", "target", "a1") + "\n" + CALL.format("agents__patch", "input", 'a "b"\n\nc')
    folder = counting_model.make(tmp_path / "artifact", script=script).folder
    tools: Any = [AGENTS, PATCH, {"type": "web_search"}]
    with serving(folder) as served, served.client() as client:
        raw = client.responses.with_raw_response.create(model=MODEL, input="Hi", tools=tools)
        assert raw.headers["x-qwonnx-ignored-tools"] == "web_search"
        close, patch = raw.parse().output
        assert close.type == "function_call"
        assert (close.name, close.namespace, json.loads(close.arguments)) == ("close", "agents", {"target": "a1"})
        assert patch.type == "custom_tool_call"
        assert (patch.name, patch.namespace, patch.input) == ("patch", "agents", 'a "b"\n\nc')
        events = list(client.responses.create(model=MODEL, input="Hi", tools=tools, stream=True))
        inputs = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
        assert "".join(inputs) == patch.input
        history: Any = [{"role": "user", "content": "Hi"}, close, patch]
        history += [{"type": "function_call_output", "call_id": close.call_id, "output": "ok"}]
        history += [{"type": "custom_tool_call_output", "call_id": patch.call_id, "output": "ok"}]
        assert client.responses.create(model=MODEL, input=history, tools=tools, max_output_tokens=3).output
        one = client.responses.create(model=MODEL, input="Hi", tools=tools, parallel_tool_calls=False)
        assert len(one.output) == 1


class Weather(BaseModel):
    city: Literal["Oslo", "Rom"]
    sunny: bool


def test_a_form_is_followed_and_parsed(served: Served) -> None:
    with served.client() as client:
        parsed = client.responses.parse(model=MODEL, input="Hi", text_format=Weather, max_output_tokens=400)
        assert parsed.output_parsed is not None
        assert parsed.output_parsed.city in ("Oslo", "Rom")
        with client.responses.stream(model=MODEL, input="Hi", text_format=Weather, max_output_tokens=400) as stream:
            assert stream.get_final_response().output_parsed == parsed.output_parsed
        required = client.responses.create(
            model=MODEL,
            input="Hi",
            tools=[
                {
                    "type": "function",
                    "name": "toggle",
                    "strict": True,
                    "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
                }
            ],
            tool_choice={"type": "function", "name": "toggle"},
            max_output_tokens=400,
        )
        (called,) = required.output
        assert called.type == "function_call"
        assert isinstance(json.loads(called.arguments)["on"], bool)


@pytest.mark.parametrize("top", [0, 3])
def test_texts_have_the_log_probabilities_of_their_tokens(served: Served, top: int) -> None:
    fields: dict[str, Any] = {"model": MODEL, "input": "Hi", "max_output_tokens": 12, "top_logprobs": top}
    fields["include"] = ["message.output_text.logprobs"]
    with served.client() as client:
        (message,) = client.responses.create(**fields).output
        events = list(client.responses.create(**fields, stream=True))
    assert message.type == "message"
    (content,) = message.content
    assert content.type == "output_text"
    assert content.logprobs is not None
    assert b"".join(bytes(token.bytes) for token in content.logprobs).decode() == content.text
    assert all(len(token.top_logprobs) == top and token.logprob <= 0 for token in content.logprobs)
    streamed = [
        token.token for event in events if event.type == "response.output_text.delta" for token in event.logprobs
    ]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert streamed == [token.token for token in done.logprobs] == [token.token for token in content.logprobs]


def test_input_tokens_are_those_of_the_answer(served: Served) -> None:
    items: Any = [{"role": "user", "content": "Hi"}]
    with served.client() as client:
        common: dict[str, Any] = {"model": MODEL, "input": items, "instructions": "Be brief.", "tools": TOOLS}
        counted = client.responses.input_tokens.count(**common)
        answered = client.responses.create(**common, max_output_tokens=1)
        assert answered.usage is not None
        assert counted.input_tokens == answered.usage.input_tokens
        assert client.responses.input_tokens.count(input="Hi").input_tokens < counted.input_tokens
        with pytest.raises(openai.BadRequestError) as too_long:
            client.responses.input_tokens.count(model=MODEL, input="word " * 3000)
        assert too_long.value.param == "input"
        with pytest.raises(openai.NotFoundError):
            client.responses.input_tokens.count(model="another", input="Hi")


def test_nothing_is_stored(served: Served) -> None:
    with served.client() as client:
        response = client.responses.create(model=MODEL, input="Hi", max_output_tokens=1)
        refusals = (
            lambda: client.responses.retrieve(response.id),
            lambda: client.responses.delete(response.id),
            lambda: client.responses.cancel(response.id),
            lambda: list(client.responses.input_items.list(response.id)),
            lambda: client.responses.compact(model=MODEL, input="Hi"),
        )
        for refusal in refusals:
            with pytest.raises(openai.NotFoundError) as raised:
                refusal()
            assert raised.value.code in ("response_not_found", "compaction_not_supported")
        with pytest.raises(openai.BadRequestError) as stateful:
            client.responses.create(model=MODEL, input="Hi", previous_response_id=response.id)
        assert "send the earlier output items in input" in stateful.value.message


def test_a_client_may_refer_to_items_unless_it_said_that_nothing_shall_be_stored(scripted: Served) -> None:
    def turn(item_ids: list[str]) -> Any:
        references: Any = [{"type": "item_reference", "id": item_id} for item_id in item_ids]
        return [{"role": "user", "content": "Hi"}, *references, {"role": "user", "content": "And?"}]

    with scripted.client() as client:
        for stream in (False, True):
            items: list[Any]
            if stream:
                with client.responses.stream(model=MODEL, input="Hi") as reader:
                    items = list(reader.get_final_response().output)
            else:
                items = list(client.responses.create(model=MODEL, input="Hi").output)
            referred = turn([item.id for item in items])
            sent = [*turn([])[:1], *items, *turn([])[1:]]
            counts = {client.responses.input_tokens.count(input=each).input_tokens for each in (referred, sent)}
            assert len(counts) == 1
            assert client.responses.create(model=MODEL, input=referred).output
        unstored: Any = client.responses.create(model=MODEL, input="Hi", store=False).output
        with pytest.raises(openai.BadRequestError) as raised:
            client.responses.create(model=MODEL, input=turn([unstored[-1].id]))
        assert raised.value.code == "item_not_found"


def test_a_client_that_leaves_ends_its_answer(served: Served) -> None:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 400, "stream": True}
    with paced(served.engine), served.http() as http, http.stream("POST", "/v1/responses", json=body) as stream:
        lines = stream.iter_lines()
        until(lambda: "output_text.delta" in next(lines))
        assert served.engine.num_live_requests == 1
    until(lambda: served.engine.num_live_requests == 0)


def test_a_client_that_leaves_with_the_last_event_has_its_whole_answer(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 3, "stream": True}
    with caplog.at_level("INFO", "qwonnx.access"):
        for _ in range(5):
            with served.http() as http, http.stream("POST", "/v1/responses", json=body) as stream:
                lines = stream.iter_lines()
                until(lambda lines=lines: next(lines).startswith("event: response.incomplete"))  # type: ignore[misc]
        until(lambda: caplog.text.count("POST /v1/responses ") == 5)
    assert caplog.text.count("POST /v1/responses 200") == 5


def test_every_route_needs_the_key(counting_folder: Path) -> None:
    settings = ServerSettings(api_key="s3cret", shutdown_seconds=0.5)
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 1}
    paths = ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/resp_1/cancel")
    with serving(counting_folder, settings=settings) as served, served.http() as http:
        for path in paths:
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        key = {"authorization": "Bearer s3cret"}
        statuses = [http.post(path, json={**body, "stream": None}, headers=key).status_code for path in paths]
    assert statuses == [200, 400, 404]  # the number of tokens has no max_output_tokens


def test_an_upgrade_to_a_websocket_is_refused(served: Served) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    with served.http() as http:
        answer = http.get("/v1/responses", headers=upgrade)
        assert (answer.status_code, answer.json()["error"]["code"]) == (426, "upgrade_not_supported")
        assert answer.headers["upgrade"]
        assert http.get("/v1/responses").status_code == 405
        assert http.get("/v1/responses/input_tokens").status_code == 405
        assert http.get("/v1/responses").headers["allow"] == "POST"
        unknown = http.post("/v1/responses/a/b")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "route_not_found")


def test_hosted_tools_are_refused_by_a_strict_server(counting_folder: Path) -> None:
    settings = ServerSettings(shutdown_seconds=0.5, strict_tools=True)
    with serving(counting_folder, settings=settings) as served, served.client() as client:
        for tools in ([{"type": "web_search"}], [WEATHER, {"type": "image_generation"}]):
            asked: Any = tools
            with pytest.raises(openai.BadRequestError) as raised:
                client.responses.create(model=MODEL, input="Hi", tools=asked)
            assert raised.value.code == "unsupported_tool"
        assert client.responses.create(model=MODEL, input="Hi", tools=TOOLS, max_output_tokens=1).output


def test_a_failing_step_is_a_500_or_a_failed_response_and_the_server_goes_on(served: Served) -> None:
    failing = f"x{counting_model.FAILING_TEXT}"
    with served.client() as client:
        with pytest.raises(openai.InternalServerError) as refusal:
            client.responses.create(model=MODEL, input=failing, max_output_tokens=3)
        assert refusal.value.code == "internal_error"
        *_, last = client.responses.create(model=MODEL, input=failing, max_output_tokens=3, stream=True)
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "server_error"
        assert client.responses.create(model=MODEL, input="Hi", max_output_tokens=3).output_text


def test_refusals_name_the_field_as_the_client_knows_it(served: Served) -> None:
    cases: dict[str, dict[str, Any]] = {
        "input": {"input": "word " * 3000},
        "max_output_tokens": {"max_output_tokens": 0},
        "temperature": {"temperature": 3},
        "model": {"model": "another"},
        "text.format.schema": {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "moon"}}}},
        "tools[0].tools[0].parameters": {
            "tools": [{**AGENTS, "tools": [{**WEATHER, "strict": True, "parameters": {"type": "string"}}]}]
        },
    }
    with served.client() as client:
        for param, fields in cases.items():
            with pytest.raises(openai.APIStatusError) as raised:
                client.responses.create(**{"model": MODEL, "input": "Hi", **fields})
            assert raised.value.param is not None
            assert raised.value.param.startswith(param)
