"""What 28 real clients sent: each request gets its status, and each session finds its earlier prompts again.

The requests are in tests/handlers/data/recorded, with fields and schemas as they were, and prose cut.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints import chat_template
from tests.handlers.serving import Served, serving
from tests.runtime import counting_model

RECORDED = Path(__file__).parent / "data" / "recorded"
RUNTIME = RuntimeSettings(num_threads=1, max_num_seqs=4, max_num_batched_tokens=512, max_model_len=65_536, spin=False)

# Requests that are refused, by client and number: their status, and what the refusal names. All others get a 200.
REFUSED = {
    ("anthropic-python", 9): (400, "thread"),
    ("anthropic-python", 10): (400, "thread"),
    ("langchain", 14): (404, "embeddings"),
    ("openai-python", 24): (404, "embeddings"),
    ("litellm", 10): (404, "embeddings"),
    ("openai-python", 15): (400, "image_url"),
    ("openai-python", 17): (400, "echo with logprobs"),
}
_LIMITS = {"/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens", "/v1/completions": "max_tokens"}


def recorded() -> dict[str, list[dict[str, Any]]]:
    """The requests of each client."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RECORDED.glob("*.json"))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model with a long context and Qwen's template, under the recorded name."""
    artifact = tmp_path_factory.mktemp("recorded") / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting_model, "MAX_POSITION_EMBEDDINGS", RUNTIME.max_model_len)
        header = "<|im_start|>assistant\n<think>\n"
        script = "\n</think>\n\nYes."
        made = counting_model.make(artifact, script=script, script_after=header, chat_template=chat_template())
    settings = ServerSettings(model_name="checkpoint", any_model_name=True, shutdown_seconds=0.5)
    with serving(made.folder, runtime=RUNTIME, settings=settings) as served:
        yield served


def sent(server: Served, request: dict[str, Any], *, stream: bool | None = None) -> httpx.Response:
    """The answer to a recorded request. Limits of tokens that are small or absent become 8."""
    body, path = request.get("body"), request["path"]
    if isinstance(body, dict) and path in (*_LIMITS, "/v1/chat/completions"):
        name = _LIMITS.get(path, "max_tokens" if "max_tokens" in body else "max_completion_tokens")
        body = {**body, name: 8}
        if stream is not None:
            body = {key: value for key, value in body.items() if key != "stream_options"} | {"stream": stream}
    query = f"?{request['query']}" if request.get("query") else ""
    with server.http() as http:
        return http.request(request["method"], path + query, json=body)


def test_every_recorded_request_gets_its_status(server: Served) -> None:
    num_requests = 0
    refused: dict[tuple[str, int], tuple[int, str]] = {}
    for client, requests in recorded().items():
        for number, request in enumerate(requests):
            num_requests += 1
            answer = sent(server, request)
            if answer.status_code != 200:
                refused[client, number] = (answer.status_code, answer.text)
            elif answer.headers["content-type"].startswith("text/event-stream"):
                assert '"error":{' not in answer.text, (client, number)
    assert {key: status for key, (status, _) in refused.items()} == {
        key: status for key, (status, _) in REFUSED.items()
    }
    for key, (_, named) in REFUSED.items():
        assert named in refused[key][1]
    assert num_requests == 194


def test_a_sessions_next_turn_finds_the_prompt_of_the_one_before(server: Served) -> None:
    sessions: dict[str, int] = {}
    for client, requests in recorded().items():
        for first, second in itertools.pairwise(requests):
            if is_next_turn(first, second):
                sessions[client] = sessions.get(client, 0) + 1
                before, after = (sent(server, each, stream=False) for each in (first, second))
                assert (before.status_code, after.status_code) == (200, 200)
                assert usage_of(after).num_cached >= 0.95 * usage_of(before).num_prompt, client
    assert sessions.keys() >= {"claude-code", "codex", "opencode", "qwen-code"}
    assert sum(sessions.values()) > 20


def is_next_turn(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether a request continues the conversation of another one."""
    one, other = first.get("body"), second.get("body")
    if not isinstance(one, dict) or not isinstance(other, dict) or first["path"] != second["path"]:
        return False
    items, later = _items(one), _items(other)
    if not items or one.get("tools") != other.get("tools") or one.get("system") != other.get("system"):
        return False
    return len(later) > len(items) and later[: len(items)] == items


def _items(body: dict[str, Any]) -> list[Any]:
    given = body.get("messages", body.get("input", []))
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return [_without_marks(item) for item in items]


def _without_marks(value: Any) -> Any:
    """Without cache_control, which moves from turn to turn."""
    if isinstance(value, list):
        return [_without_marks(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_marks(each) for key, each in value.items() if key != "cache_control"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a prompt, and of them those that were found."""

    num_prompt: int
    num_cached: int


def usage_of(answer: httpx.Response) -> Usage:
    """The usage in any API's words."""
    usage = answer.json()["usage"]
    if "prompt_tokens" in usage:
        return Usage(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
    if "input_tokens_details" in usage:
        return Usage(usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"])
    cached = usage["cache_read_input_tokens"]
    return Usage(usage["input_tokens"] + cached, cached)
