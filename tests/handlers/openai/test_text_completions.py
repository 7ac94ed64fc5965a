"""Text completions: the official client against a real server, and what is refused by which name."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.handlers.serving import MODEL, Served
from tests.runtime import counting_model

LETTERS: Any = {"structured_outputs": {"regex": "[a-z]{60}"}}


def expected(served: Served, text: str, num_tokens: int) -> str:
    tokenizer = served.engine.tokenizer
    model = counting_model.CountingModel(served.engine.artifact.folder, tokenizer, 1, None)
    return tokenizer.decode(model.answer(tokenizer.encode(text), num_tokens))


def test_a_text_is_continued_whole_and_streamed(served: Served) -> None:
    with served.client() as client:
        whole = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=9)
        chunks = list(
            client.completions.create(
                model=MODEL, prompt="One, two,", max_tokens=9, stream=True, stream_options={"include_usage": True}
            )
        )
    assert whole.choices[0].text == expected(served, "One, two,", 9)
    assert (whole.object, whole.choices[0].finish_reason, whole.choices[0].logprobs) == (
        "text_completion",
        "length",
        None,
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 9
    assert whole.usage.prompt_tokens == len(served.engine.tokenizer.encode("One, two,"))


def test_sixteen_tokens_are_given_unless_more_are_asked_for(served: Served) -> None:
    with served.client() as client:
        usage = client.completions.create(model=MODEL, prompt="Hello").usage
    assert usage is not None
    assert usage.completion_tokens == 16


@pytest.mark.parametrize("form", ["texts", "tokens", "lists of tokens", "one text"])
def test_every_form_of_prompts_gives_the_same(served: Served, form: str) -> None:
    texts = ["One, two,", "A, b,"]
    encode = served.engine.tokenizer.encode
    prompt: Any = {
        "texts": texts,
        "tokens": encode(texts[0]),
        "lists of tokens": [encode(text) for text in texts],
        "one text": texts[:1],
    }[form]
    with served.client() as client:
        found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, echo=True, logprobs=None)
    asked = texts if form in ("texts", "lists of tokens") else texts[:1]
    assert [choice.text for choice in found.choices] == [text + expected(served, text, 5) for text in asked]
    assert [choice.index for choice in found.choices] == list(range(len(asked)))


def test_each_prompt_has_n_answers_and_is_counted_once(served: Served) -> None:
    fields: Any = {"model": MODEL, "prompt": ["One, two,", "A, b,"], "n": 3, "max_tokens": 5, "seed": 2}
    fields |= {"temperature": 2, "extra_body": LETTERS}
    with served.client() as client:
        whole = client.completions.create(**fields)
        chunks = list(client.completions.create(**fields, stream=True))
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = ["" for _ in range(6)]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) > 2
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 30
    encode = served.engine.tokenizer.encode
    assert whole.usage.prompt_tokens == len(encode("One, two,")) + len(encode("A, b,"))


def test_log_probabilities_stand_beside_the_text(served: Served) -> None:
    fields: Any = {"model": MODEL, "prompt": "One", "max_tokens": 6, "seed": 2, "temperature": 2, "logprobs": 2}
    with served.client() as client:
        choice = client.completions.create(**fields, extra_body=LETTERS).choices[0]
        chunks = list(client.completions.create(**fields, extra_body=LETTERS, stream=True))
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == [len("".join(told.tokens[:index])) for index in range(6)]
    for token, logprob, top in zip(told.tokens, told.token_logprobs or (), told.top_logprobs, strict=True):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
    streamed = [
        token for chunk in chunks for each in chunk.choices if each.logprobs for token in each.logprobs.tokens or ()
    ]
    assert streamed == told.tokens


def test_a_stop_string_ends_the_text(served: Served) -> None:
    text = expected(served, "One, two,", 12)
    with served.client() as client:
        cut = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=12, stop=text[4:7]).choices[0]
    assert (cut.text, cut.finish_reason) == (text[:4], "stop")


def test_special_tokens_of_a_text_are_tokens(served: Served) -> None:
    with served.client() as client:
        usage = client.completions.create(model=MODEL, prompt="<|im_start|>user\nHi<|im_end|>\n", max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens == len(served.engine.tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n"))


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": [["a"]]}, "prompt[0]"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", {}]}, "prompt[1]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1 << 20]}, "prompt"),
        ({"prompt": "x" * 3000}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"wish": 1}, "wish"),
        ({"stream_options": {}}, "stream_options"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_is_not_served_is_refused_by_its_name(served: Served, fields: dict[str, Any], parameter: str) -> None:
    with served.http() as http:
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "a", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == parameter


def test_there_are_no_embeddings(served: Served) -> None:
    with served.client() as client, pytest.raises(openai.NotFoundError) as refusal:
        client.embeddings.create(model=MODEL, input="a")
    assert refusal.value.code == "embeddings_not_supported"
