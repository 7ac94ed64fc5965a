"""A stop string ends the answer, and not the thoughts before it: frameworks send words that thoughts are full of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.checkpoints import chat_template
from tests.handlers.serving import MODEL, Served, chat, serving
from tests.runtime import counting_model

THOUGHTS = "An Observation: he asks."
ANSWER = "It is so. Observation: none."


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that thinks and answers, with Qwen's template."""
    folder = tmp_path_factory.mktemp("thinking") / "artifact"
    script, header = f"{THOUGHTS}\n</think>\n\n{ANSWER}", "<|im_start|>assistant\n<think>\n"
    made = counting_model.make(folder, script=script, script_after=header, chat_template=chat_template())
    with serving(made.folder) as served:
        yield served


def asked(served: Served, path: str, **fields: Any) -> Any:
    with served.http() as http:
        answer = http.post(path, json={"model": MODEL, "messages": chat(), **fields})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("stop", ["Observation:", "Obs", ".\n</think>\n\nIt is so. O", "\n</think>", "asks."])
def test_a_chat_stops_in_its_answer(thinking: Served, stop: str) -> None:
    said = ANSWER.partition(stop)[0] if stop in ANSWER else ANSWER
    choice = asked(thinking, "/v1/chat/completions", stop=[stop]).json()["choices"][0]
    assert choice["message"]["reasoning_content"].strip() == THOUGHTS
    assert (choice["message"]["content"].strip(), choice["finish_reason"]) == (said.strip(), "stop")
    lines = asked(thinking, "/v1/chat/completions", stop=stop, stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == said.strip()
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas).strip() == THOUGHTS


def test_the_other_apis_do_too(thinking: Served) -> None:
    budget = {"type": "enabled", "budget_tokens": 1024}
    fields: dict[str, Any] = {"max_tokens": 300, "stop_sequences": ["Observation:"], "thinking": budget}
    message = asked(thinking, "/v1/messages", **fields).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "Observation:")
    assert message["content"][-1]["text"].strip() == "It is so."
    answer = asked(thinking, "/api/chat", think=True, options={"stop": ["Observation:"]}, stream=False).json()
    assert answer["message"]["content"].strip() == "It is so."
