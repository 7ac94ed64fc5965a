from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.text.detokenizer import Detokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.runtime.counting_model import tokenizer_json

pytestmark = pytest.mark.fast

TOKENIZER = Tokenizer(json.dumps(tokenizer_json()))
REPLACEMENT = "\ufffd"


@given(st.text(max_size=40))
def test_the_deltas_of_a_text_are_the_text_and_never_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    ids = TOKENIZER.encode(text)
    deltas = [detokenizer.push(token) for token in ids]
    whole = TOKENIZER.decode(ids)
    assert "".join(deltas) == whole
    assert sum(delta.count(REPLACEMENT) for delta in deltas) == whole.count(REPLACEMENT)


@given(st.lists(st.integers(0, TOKENIZER.num_tokens - 1), max_size=30))
def test_the_deltas_of_any_tokens_are_their_text_without_an_unfinished_end(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    text = "".join(detokenizer.push(token) for token in ids)
    whole = TOKENIZER.decode(ids)
    assert whole.startswith(text)
    assert whole[len(text) :] in ("", REPLACEMENT)  # at most one character is unfinished


def test_an_emoji_in_four_tokens_comes_with_the_last() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    ids = TOKENIZER.encode("\U0001f600")
    assert [detokenizer.push(token) for token in ids] == [""] * (len(ids) - 1) + ["\U0001f600"]


def test_special_tokens_have_no_text_even_inside_a_character() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    first, second = TOKENIZER.encode("\u4e2d")[:2], TOKENIZER.encode("\u4e2d")[2:]
    special = TOKENIZER.encode("<|im_start|>")
    assert "".join(detokenizer.push(token) for token in [*first, *special, *second]) == "\u4e2d"
    assert "".join(detokenizer.push(token) for token in TOKENIZER.encode("<think>")) == "<think>"
