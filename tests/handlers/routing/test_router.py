"""A router before real servers, and before some that fail in every way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwonnx.handlers.routing.affinity import affinity_of
from qwonnx.handlers.routing.replicas import Address, Replica
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.routing.routed import MAX_BODY_BYTES, Routed, routed, scripted
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, paced, serving, until

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
CHATS = int(os.environ.get("QWONNX_ROUTER_CHATS", "16"))
SYSTEM: Any = {"role": "system", "content": "You are a clerk of many words. " * 10}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": content}}]}).encode() + b"\n\n"


@pytest.fixture(scope="module")
def pair(counting_folder: Path) -> Iterator[tuple[Routed, list[Served]]]:
    """A router before two servers."""
    with ExitStack() as held:
        runtime = replace(RUNTIME, max_model_len=1024, max_num_seqs=8)
        replicas = [held.enter_context(serving(counting_folder, runtime=runtime)) for _ in range(2)]
        yield held.enter_context(routed([each.url for each in replicas])), replicas


def answer(url: str, messages: list[Any], *, stream: bool = False, max_tokens: int = 6) -> tuple[str, int]:
    """The text, and the tokens of the prompt that were found."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": messages, "max_tokens": max_tokens}
        if not stream:
            whole = client.chat.completions.create(**asked)
            text, usage = whole.choices[0].message.content or "", whole.usage
        else:
            create: Any = client.chat.completions.create
            chunks = list(create(**asked, stream=True, stream_options={"include_usage": True}))
            text, usage = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return text, usage.prompt_tokens_details.cached_tokens or 0


def test_chats_are_answered_as_by_one_server_and_find_their_states(pair: tuple[Routed, list[Served]]) -> None:
    """QWONNX_ROUTER_CHATS chats of four turns, eight at a time."""
    front, replicas = pair
    met: list[bool] = []

    def talk(number: int) -> None:
        messages: list[Any] = [SYSTEM]
        for turn in range(4):
            messages.append({"role": "user", "content": f"Chat {number}, turn {turn}?"})
            text, cached = answer(front.url, messages, stream=number % 2 == 0)
            if turn:
                met.append(cached > 40 + 10 * turn)
            messages.append({"role": "assistant", "content": text})
        if number % 8 == 0:
            assert answer(replicas[0].url, messages[:-1])[0] == messages[-1]["content"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(CHATS)))
    assert sum(met) >= 0.9 * len(met)
    answered = [each.answered for each in front.router.replicas.all]
    assert min(answered) > 0
    assert sum(answered) >= 4 * CHATS
    assert all(each.in_flight == 0 for each in front.router.replicas.all)


def test_an_answer_has_the_replicas_headers_and_one_request_id(pair: tuple[Routed, list[Served]]) -> None:
    front, replicas = pair
    with front.http() as client:
        shown = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert shown.headers.get_list("x-request-id") == ["mine"]
        assert shown.json() == client.get(f"{replicas[0].url}/v1/models").json()
        missing = client.get("/v1/nothing?x=1")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "route_not_found"
        with client.stream("POST", PATH, json=body(stream=True)) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-cache, no-transform"
            assert list(stream.iter_lines())[-2:] == ["data: [DONE]", ""]


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": chat("How many?"), "max_tokens": 4, **more}


def test_a_body_is_limited_and_must_be_json(pair: tuple[Routed, list[Served]]) -> None:
    front, _ = pair
    with front.http() as client:
        large = client.post(PATH, content=b"x" * (MAX_BODY_BYTES + 1), headers={"content-type": "application/json"})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        odd = client.post(PATH, content=b"{}", headers={"content-type": "text/plain"})
        assert odd.status_code == 415
        bad = client.post(PATH, content=b"{", headers=JSON)
        assert bad.status_code == 400


def test_a_client_that_leaves_ends_its_generation(pair: tuple[Routed, list[Served]]) -> None:
    front, replicas = pair
    with ExitStack() as held:
        for each in replicas:
            held.enter_context(paced(each.engine))
        with (
            front.http() as client,
            client.stream("POST", PATH, json=body(stream=True, max_tokens=400)) as s,
        ):
            lines = s.iter_lines()
            next(lines)
            assert sum(each.engine.num_live_requests for each in replicas) == 1
        until(lambda: sum(each.engine.num_live_requests for each in replicas) == 0)
    until(lambda: all(each.in_flight == 0 for each in front.router.replicas.all))


def test_keys_are_the_replicas_matter(counting_folder: Path) -> None:
    with serving(counting_folder, settings=ServerSettings(api_key="secret")) as served, routed([served.url]) as front:
        with front.client("secret") as client:
            assert client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2).choices
        with front.client("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"HTTP/1.1 200"],
        [b"nonsense\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"],
        [b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"],
        [b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}"],
        [HEAD],
        [HEAD, chunk(event(""))],
        [HEAD, chunk(event("")), chunk(b": keep-alive\n\n")],
    ],
    ids=["nothing", "half a head", "nonsense", "half a body", "503", "429", "head", "first event", "comment"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_fails_before_the_first_token_costs_no_request(
    pair: tuple[Routed, list[Served]], pieces: list[bytes], stream: bool
) -> None:
    _, replicas = pair
    with scripted(pieces) as broken, routed([broken, replicas[0].url]) as front:
        first, other = front.router.replicas.all
        for messages in islice(chats_meant_for(first, other), 3):
            text, _ = answer(front.url, messages, stream=stream)
            assert text == answer(replicas[0].url, messages)[0]
            until(lambda: all(each.is_ready for each in front.router.replicas.all))
        assert (first.failed, first.answered) == (3, 0)


def chats_meant_for(replica: Replica, other: Replica) -> Iterator[list[Any]]:
    """Conversations that begin at a replica: which ones do depends on the ports."""
    for number in count():
        messages = chat(f"Number {number}?")
        key = affinity_of(json.dumps({"messages": messages}).encode()).conversation
        assert key is not None
        if replica.score(key) > other.score(key):
            yield messages


@pytest.mark.parametrize("cut", [[], [chunk(b'data: {"half')], [chunk(b"data: {}\n")]], ids=["end", "half", "line"])
def test_a_stream_that_breaks_off_later_ends_with_an_error_event(cut: list[bytes]) -> None:
    pieces = [HEAD, chunk(event("")), chunk(event("One")), *cut]
    with scripted(pieces) as broken, routed([broken]) as front:
        with front.http() as client, client.stream("POST", PATH, json=body(stream=True)) as stream:
            text = "".join(stream.iter_text())
        events = [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n") if block]
        assert events[1]["choices"][0]["delta"]["content"] == "One"
        assert events[-1]["error"]["code"] == "replica_lost"
        assert len(events) == 3
        assert front.router.replicas.all[0].cut == 1
        until(lambda: front.router.replicas.all[0].is_ready)
        with front.client() as api:
            whole = api.chat.completions.create(model=MODEL, messages=chat(), stream=True)
            with pytest.raises(openai.APIError, match="lost"):
                list(whole)


def test_without_a_ready_replica_it_says_so_and_is_not_ready(counting_folder: Path) -> None:
    with (
        scripted([], health=b"503 Service Unavailable") as loading,
        routed([loading, "http://127.0.0.1:9"], ready=0) as front,
    ):
        with front.http() as client:
            assert client.get("/health/live").status_code == 200
            assert client.get("/health/ready").status_code == 503
            refused = client.post(PATH, json=body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_replica")
        assert refused.headers["retry-after"] == "1"


def test_the_metrics_are_prometheus_text(pair: tuple[Routed, list[Served]]) -> None:
    front, _ = pair
    with front.http() as client:
        families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
    assert families["qwonnx_router_replicas_ready"].samples[0].value == 2
    assert len(families["qwonnx_router_answered"].samples) == 2
    assert families["qwonnx_router_conversations"].samples[0].value > 0


def test_replicas_come_and_go(counting_folder: Path) -> None:
    with routed(["http://127.0.0.1:9"], ready=0) as front:
        replicas = front.router.replicas
        with serving(counting_folder) as served:
            replicas.update([Address("127.0.0.1", urlsplit(served.url).port or 80)])
            until(lambda: all(each.is_ready for each in replicas.all))
            assert answer(front.url, chat("Again?"))[0]
        until(lambda: not any(each.is_ready for each in replicas.all))
