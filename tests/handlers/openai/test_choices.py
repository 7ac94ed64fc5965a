"""Several answers to one prompt, log probabilities and times: the official client against a real server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.handlers.serving import MODEL, Served, chat, paced, serving, until
from tests.runtime import counting_model

# Only letters: some tokens make the counting model fail.
LETTERS = {"structured_outputs": {"regex": "[a-z]{60}"}}
ASKED: Any = {"model": MODEL, "messages": chat("Hello " * 20), "temperature": 2, "max_tokens": 12}
RANDOM: Any = {**ASKED, "extra_body": LETTERS}


def test_choices_are_the_answers_with_the_seeds_after_the_first_and_share_the_prompt(served: Served) -> None:
    with served.client() as client:
        alone = [client.chat.completions.create(**RANDOM, seed=seed) for seed in range(5, 9)]
        whole = client.chat.completions.create(**RANDOM, seed=5, n=4)
        chunks = list(
            client.chat.completions.create(**RANDOM, seed=5, n=4, stream=True, stream_options={"include_usage": True})
        )
    expected = [each.choices[0].message.content for each in alone]
    assert len(set(expected)) > 1
    assert [choice.message.content for choice in whole.choices] == expected
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4 * 12
    assert whole.usage.prompt_tokens == (alone[0].usage.prompt_tokens if alone[0].usage else None)
    texts = ["", "", "", ""]
    ends = []
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert texts == expected
    assert sorted(ends) == [0, 1, 2, 3]
    assert chunks[-1].usage == whole.usage


def test_without_a_seed_choices_differ(served: Served) -> None:
    with served.client() as client:
        whole = client.chat.completions.create(**RANDOM, n=8)
    assert len({choice.message.content for choice in whole.choices}) > 1


def test_the_others_find_the_prompt_that_the_first_has_read(served: Served) -> None:
    computed = served.engine.metrics().prompt_tokens
    cached = served.engine.metrics().cached_tokens
    with served.client() as client:
        fields = {**RANDOM, "messages": chat("Never asked before " * 12)}
        usage = client.chat.completions.create(**fields, n=4).usage
    assert usage is not None
    assert served.engine.metrics().prompt_tokens - computed == 4 * usage.prompt_tokens
    assert served.engine.metrics().cached_tokens - cached > 2.5 * usage.prompt_tokens


def test_a_client_that_leaves_ends_all_of_them(served: Served) -> None:
    body = {**ASKED, "temperature": 0, "n": 4, "max_tokens": 400, "stream": True}
    with paced(served.engine), served.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        until(lambda: "content" in next(lines) and served.engine.num_live_requests == 4)
    until(lambda: served.engine.num_live_requests == 0)


def _check(tokens: Any, text: str, tokenizer: Tokenizer) -> None:
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
        likeliest = [each.logprob for each in token.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert sum(map(math.exp, likeliest)) <= 1 + 1e-6
        assert token.token == bytes(token.bytes).decode("utf-8", "replace")
        assert tokenizer.decode(tokenizer.encode(token.token)) == token.token


def test_log_probabilities_cover_the_text_whole_and_streamed(served: Served) -> None:
    fields: Any = {**RANDOM, "seed": 3, "logprobs": True, "top_logprobs": 3}
    with served.client() as client:
        choice = client.chat.completions.create(**fields).choices[0]
        chunks = list(client.chat.completions.create(**fields, stream=True))
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 12
    _check(choice.logprobs.content, choice.message.content or "", served.engine.tokenizer)
    streamed = [
        token
        for chunk in chunks
        for token in (chunk.choices[0].logprobs or choice.logprobs).content or ()
        if chunk.choices[0].logprobs
    ]
    assert streamed == choice.logprobs.content


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_and_the_end_token_have_no_log_probabilities(tmp_path: Path, stream: bool) -> None:
    script = "<think>\nHe asks.\n</think>\n\nYes."
    folder = counting_model.make(tmp_path / "artifact", script=script).folder
    with serving(folder) as served, served.http() as http:
        body = {"model": MODEL, "messages": chat(), "logprobs": True, "stream": stream}
        answer = http.post("/v1/chat/completions", json=body)
        if stream:
            import json

            chunks = [json.loads(each[6:]) for each in answer.text.split("\n\n") if each.startswith("data: {")]
            found = [each["choices"][0]["logprobs"] for each in chunks if each["choices"][0]["logprobs"]]
            tokens = [token for each in found for token in each["content"]]
        else:
            tokens = answer.json()["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).strip() == "Yes."
    assert all(token["top_logprobs"] == [] for token in tokens)


def test_times_are_told_when_they_are_asked_for(served: Served) -> None:
    with served.http() as http:
        body = {**ASKED, "temperature": 0, "timings": True}
        whole = http.post("/v1/chat/completions", json=body).json()
        told, usage = whole["timings"], whole["usage"]
        assert told["predicted_n"] == 12
        assert told["cache_n"] + told["prompt_n"] == usage["prompt_tokens"]
        assert told["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert min(told["prompt_ms"], told["predicted_ms"], told["predicted_per_second"]) > 0
        events = http.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    assert [("timings" in event) for event in events if 'finish_reason":"' in event] == [True]
    assert sum("timings" in event for event in events) == 1
