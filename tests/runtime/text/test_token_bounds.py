"""The bound never exceeds a text's tokens, and is close for texts that people send."""

from __future__ import annotations

import json
import threading
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.template_text import TemplateText, joined, own
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tokenizer import build_tokenizer

pytestmark = pytest.mark.fast

TOKENIZER = Tokenizer(build_tokenizer())
BOUNDS = TOKENIZER._bounds
FRAGMENTS = (
    *("a", "A long sentence, with words. ", "1234567890", " ", "        ", "\n", "\t", "{}[]();", "----", "<|im_end|>"),
    *(
        "中文字符",
        "é",
        "e\u0301",
        "\u1112\u1161\u11ab",
        "👩\u200d👧 ",
        "ﬁ",
        "\u2003",
        "\u0338",
        "<\u0338",
        "x\u0301\u0323",
    ),
)


@given(parts=st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.integers(1, 900)), min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_text_has_at_least_as_many_tokens_as_its_bound(parts: list[tuple[str, int]]) -> None:
    text = "".join(part * count for part, count in parts)
    assert BOUNDS.fewest(text) <= len(TOKENIZER.encode_chat(TemplateText(text)).token_ids)


@pytest.mark.parametrize("form", ["NFD", "NFKC", "NFKD", "several", None])
def test_it_holds_for_other_normalisers(form: str | None) -> None:
    document = json.loads(build_tokenizer())
    several = {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFC"}]}
    document["normalizer"] = several if form == "several" else None if form is None else {"type": form}
    tokenizer = Tokenizer(json.dumps(document))
    random = Random(0)
    for _ in range(20):
        text = "".join(random.choice(FRAGMENTS) * random.randint(1, 400) for _ in range(8))
        assert tokenizer._bounds.fewest(text) <= len(tokenizer.encode_chat(TemplateText(text)).token_ids)


def _chat(text: str) -> TemplateText:
    whole = joined((own("<|im_start|>user\n"), text, own("<|im_end|>")))
    assert isinstance(whole, TemplateText)
    return whole


@pytest.mark.parametrize("part", ["a ", "x", "some words of English, and some more. ", "中文", "e\u0301", " "])
def test_long_texts_are_refused_by_their_length_and_at_once(part: str) -> None:
    chat = _chat(part * ((4 << 20) // len(part)))
    started = time.process_time()
    with pytest.raises(InvalidRequestError, match=r"^the prompt has at least \d+ tokens and at most 16383 fit") as told:
        TOKENIZER.encode_chat(chat, 16383)
    assert time.process_time() - started < 2
    assert (told.value.param, told.value.code) == ("prompt", "context_length_exceeded")


def test_what_may_fit_is_encoded_and_counted() -> None:
    chat = _chat("word " * 2000)
    count = len(TOKENIZER.encode_chat(chat).token_ids)
    assert len(TOKENIZER.encode_chat(chat, count).token_ids) == count
    with pytest.raises(InvalidRequestError, match=f"at most {count - 1} fit"):
        TOKENIZER.encode_chat(chat, count - 1)


def test_encoding_leaves_the_interpreter_to_others() -> None:
    chat = _chat("x" * (1 << 20))
    gaps, done = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    TOKENIZER.encode_chat(chat)
    took = time.perf_counter() - started
    done.set()
    thread.join()
    assert max(gaps) < max(0.25, took / 2)
