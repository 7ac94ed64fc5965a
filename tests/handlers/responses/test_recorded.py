"""What real clients sent to /v1/responses: each request gets its status, and each session finds its prompts again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints import chat_template
from tests.handlers.serving import Served, serving
from tests.runtime import counting_model

RECORDED = Path(__file__).parents[1] / "data" / "recorded"
PREFIX = "/v1/responses"
RUNTIME = RuntimeSettings(num_threads=1, max_num_seqs=4, max_num_batched_tokens=512, max_model_len=32_768, spin=False)

# Statuses of a client's requests to these paths, in order.
STATUSES = {
    "ai-sdk-openai-responses": [200] * 7,
    "codex": [200] * 2,
    "dspy": [200],
    "langchain": [200],
    "litellm": [200],
    "openai-agents": [200] * 4,
    "openai-js": [200] * 2,
    "openai-python": [200] * 6,
    "pydantic-ai": [200],
}


def recorded() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The requests of each client that has any."""
    for path in sorted(RECORDED.glob("*.json")):
        requests = [each for each in json.loads(path.read_text("utf-8")) if each["path"].startswith(PREFIX)]
        if requests:
            yield path.stem, requests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model with a long context and Qwen's template, under the recorded name."""
    artifact = tmp_path_factory.mktemp("recorded") / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting_model, "MAX_POSITION_EMBEDDINGS", RUNTIME.max_model_len)
        header = "<|im_start|>assistant\n<think>\n"
        script = "\n</think>\n\nYes."
        made = counting_model.make(artifact, script=script, script_after=header, chat_template=chat_template())
    settings = ServerSettings(model_name="checkpoint", shutdown_seconds=0.5)
    with serving(made.folder, runtime=RUNTIME, settings=settings) as served:
        yield served


def sent(server: Served, request: dict[str, Any]) -> dict[str, Any]:
    """The response to a recorded request, streamed or not; at most 8 tokens. Checks the status."""
    body = request["body"]
    if not request["path"].endswith("input_tokens"):
        body = {**body, "max_output_tokens": 8}
    with server.http() as http:
        answer = http.request(request["method"], request["path"], json=body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        document: dict[str, Any] = answer.json()
        return document
    *_, last = answer.text.removesuffix("\n\n").split("\n\n")
    response: dict[str, Any] = json.loads(last.partition("data: ")[2])["response"]
    return response


def test_every_recorded_request_gets_its_status(server: Served) -> None:
    found: dict[str, list[int]] = {}
    for client, requests in recorded():
        for request in requests:
            document = sent(server, request)
            found.setdefault(client, []).append(200)
            assert document["object"] in ("response", "response.input_tokens")
            if document["object"] == "response":
                assert document["status"] in ("completed", "incomplete")
    assert found == STATUSES


def test_a_sessions_second_turn_finds_the_prompt_of_its_first_in_the_cache(server: Served) -> None:
    sessions = 0
    for _client, requests in recorded():
        for first, second in itertools.pairwise(requests):
            if not is_next_turn(first["body"], second["body"]):
                continue
            sessions += 1
            before, after = (sent(server, request)["usage"] for request in (first, second))
            assert after["input_tokens_details"]["cached_tokens"] >= 0.95 * before["input_tokens"]
    assert sessions == 6


def is_next_turn(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether a request continues the conversation of another one."""
    items, later = (
        [{"role": "user", "content": body["input"]}] if isinstance(body["input"], str) else body["input"]
        for body in (first, second)
    )
    return len(later) > len(items) and later[: len(items)] == items and first.get("tools") == second.get("tools")
