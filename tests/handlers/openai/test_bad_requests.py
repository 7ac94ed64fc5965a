"""Every bad request gets OpenAI's error body with a status, the parameter at fault, and no internals."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, paced, serving
from tests.runtime import counting_model

PATH = "/v1/chat/completions"


def completion_request(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": chat(), "max_tokens": 4, **fields}


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    document = answer.json()
    assert document.keys() == {"error"}
    error: dict[str, Any] = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 10**30}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"thinking_budget": 0}, "thinking_budget"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents"),
        ({"moderation": {}}, "moderation"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": "x"}, "stop_token_ids"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "mood": "gay"}]}, "messages[0].mood"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"model": 5}, "model"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tools": 2 * [{"type": "function", "function": {"name": "a"}}]}, "tools[1].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice.function.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"other": 1}}, "chat_template_kwargs.other"),
        ({"temprature": 1}, "temprature"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"store": True}, "store"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
        ({"logit_bias": {"287": 1}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"uniqueItems": True}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": False}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: nowhere"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"type": 5}}}, "structured_outputs.json"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "response_format"),
        (
            {"structured_outputs": {"regex": "a"}, "tools": [{"type": "function", "function": {"name": "a"}}]},
            "structured_outputs",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "a", "strict": True, "parameters": {"type": "object", "not": {}}},
                    }
                ]
            },
            "tools[0].function.parameters",
        ),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "reasoning_effort"),
        ({"verbosity": "chatty"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_bad_field_is_a_400_that_names_it(served: Served, fields: dict[str, Any], param: str) -> None:
    with served.http() as client:
        error = refusal(client.post(PATH, json=completion_request(**fields)), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(served: Served, field: str) -> None:
    request = completion_request()
    del request[field]
    with served.http() as client:
        error = refusal(client.post(PATH, json=request), 400)
    assert (error["param"], error["code"]) == (field, "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "\xff"}',
        b'{"model": NaN}',
        b'{"temperature": 1e999}',
        b'{"model": "counting-model", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"metadata": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"n": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    ],
    ids=["empty", "cut", "list", "null", "not-utf8", "nan", "overflow", "surrogate", "deep-typed", "deep-any"],
)
def test_what_is_not_a_json_request_is_a_400(served: Served, body: bytes) -> None:
    with served.http() as client:
        refusal(client.post(PATH, content=body, headers={"content-type": "application/json"}), 400)


def test_another_content_type_is_a_415(served: Served) -> None:
    with served.http() as client:
        refusal(client.post(PATH, content=b"{}", headers={"content-type": "text/plain"}), 415)


def test_a_prompt_that_does_not_fit_is_a_400_for_messages(served: Served) -> None:
    with served.http() as client:
        request = completion_request(messages=chat("y" * 600))
        error = refusal(client.post(PATH, json=request), 400)
        streamed = refusal(client.post(PATH, json={**request, "stream": True}), 400)
    assert error == streamed
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_a_conversation_that_the_template_refuses_is_a_400_with_its_words(tmp_path: Path) -> None:
    template = "{{ raise_exception('No user query found in messages.') }}"
    folder = counting_model.make(tmp_path / "artifact", chat_template=template).folder
    with serving(folder) as served, served.http() as client:
        error = refusal(client.post(PATH, json=completion_request()), 400)
    assert (error["param"], error["message"]) == ("messages", "No user query found in messages.")


def test_an_artifact_without_a_template_says_so(tmp_path: Path) -> None:
    folder = counting_model.make(tmp_path / "artifact", chat_template=None).folder
    with serving(folder) as served, served.http() as client:
        error = refusal(client.post(PATH, json=completion_request()), 400)
    assert "chat template" in error["message"]


def test_an_unknown_model_route_or_method_has_its_own_status(served: Served) -> None:
    with served.http() as client:
        error = refusal(client.post(PATH, json=completion_request(model="gpt")), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        for path in ("/v1/nothing", "/chat/completions", "/v2"):
            error = refusal(client.get(path), 404)
            assert error["code"] == "route_not_found"
            assert "/v1/chat/completions" in error["message"], "a wrong base URL should be easy to mend"
        answer = client.get(PATH)
        assert refusal(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["allow"] == "POST"


def test_a_body_over_the_limit_is_a_413_declared_or_counted(counting_folder: Path) -> None:
    settings = ServerSettings(max_body_bytes=1000, shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served:
        with served.http() as client:
            exact = json.dumps(completion_request()).encode()
            exact += b" " * (1000 - len(exact))
            headers = {"content-type": "application/json"}
            assert client.post(PATH, content=exact, headers=headers).status_code == 200
            refusal(client.post(PATH, content=exact + b" ", headers=headers), 413)
            refusal(client.post(PATH, content=iter([exact, b" "]), headers=headers), 413)
        # Only declared: the answer comes before a byte of the body was sent.
        with socket.create_connection(served.url.removeprefix("http://").split(":"), timeout=10) as connection:  # type: ignore[arg-type]
            connection.sendall(
                f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"content-length: {10**15}\r\n\r\n".encode()
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_full_queue_is_a_429(counting_folder: Path) -> None:
    runtime = dataclasses.replace(RUNTIME, max_num_seqs=1, max_queued_requests=1)
    with serving(counting_folder, runtime=runtime) as served, served.client() as client, served.http() as raw:
        with paced(served.engine):
            streams = [
                client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=400, stream=True)
                for _ in range(2)
            ]
            answer = raw.post(PATH, json=completion_request())
            for stream in streams:
                stream.close()
        error = refusal(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert answer.headers["retry-after"]


def test_the_api_key_is_asked_for_under_v1_only(counting_folder: Path) -> None:
    settings = ServerSettings(api_key="s3cret", shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served:
        with served.http() as client:
            for given in (None, "Bearer wrong", "s3cret", "Bearer é", "Bearer"):
                headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]
                answer = client.post(PATH, json=completion_request(), headers=headers)
                assert refusal(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            assert refusal(client.get("/v1/unknown"), 401)
            assert client.get("/health/ready").status_code == 200
            assert client.get("/v1/models", headers={"authorization": "bearer s3cret"}).status_code == 200
        with served.client(api_key="wrong") as wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with served.client(api_key="s3cret") as right:
            assert right.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2).choices


def test_a_model_name_of_ones_own_is_the_only_one_that_works(counting_folder: Path) -> None:
    settings = ServerSettings(model_name="mine", shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served, served.client() as client:
        assert client.models.list().data[0].id == "mine"
        assert client.chat.completions.create(model="mine", messages=chat(), max_tokens=2).model == "mine"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2)
