"""Conformance item 7: Qwen 3.5's own vocabulary, 248,077 tokens, against its golden tokenisations.

The rest of the tokenizer is that of the test checkpoints (published_tokenizer.py); both it and the runtime are tested:
the vocabulary that the library loads, and the one that is mapped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.runtime.text.detokenizer import Detokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tokenizer import SPECIAL_TOKENS
from tests.runtime.text.many_texts import parts, scripts
from tests.runtime.text.mapped import BothForms

EXAMPLES = int(os.environ.get("QWONNX_TEST_TEXT_EXAMPLES", "100"))
NUM_BYTES = int(os.environ.get("QWONNX_TEST_TEXT_BYTES", "400_000"))
EACH_TOKEN = int(os.environ.get("QWONNX_TEST_TOKENS", "31"))  # the text of one token in so many is encoded; 1: of all

VECTORS: dict[str, list[int]] = json.loads(
    (Path(__file__).parent / "data" / "qwen35_token_vectors.json").read_text(encoding="utf-8")
)


@pytest.fixture(params=["library", "mapped", "in_python"])
def tokenizer(request: pytest.FixtureRequest, published: BothForms) -> Tokenizer:
    found: Tokenizer = getattr(published, request.param)
    return found


@pytest.mark.parametrize("text", VECTORS)
def test_7_the_golden_tokenisations_are_met_and_decode_to_their_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = VECTORS[text]
    assert tokenizer.encode(text) == tokens
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_7_the_vector_of_the_published_tests_is_met(tokenizer: Tokenizer) -> None:
    text = "Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ"
    tokens = [9419, 0, 220, 97169, 97621, 6115, 16, 478, 220, 16, 283, 220, 17, 9551, 254, 68933, 128, 97, 91914]
    assert tokenizer.encode(text) == [*tokens, 28495, 68933, 128, 105, 68933, 128, 95]


def test_7_the_special_tokens_have_their_published_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.num_tokens == 248_077
    assert [tokenizer.token_id(name) for name in SPECIAL_TOKENS] == list(range(248_044, 248_077))
    assert tokenizer.token_id("<|im_end|>") == 248_046
    assert tokenizer.token_id("</think>") == 248_069


@pytest.mark.parametrize("text", VECTORS)
def test_7_the_golden_texts_stream_without_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer)
    deltas = [detokenizer.push(token) for token in VECTORS[text]]
    assert "".join(deltas) == tokenizer.decode(VECTORS[text])
    assert not any("\ufffd" in delta for delta in deltas)


def test_the_mapped_vocabulary_gives_the_tokens_of_the_library_in_forty_scripts(published: BothForms) -> None:
    texts = list(parts(NUM_BYTES))
    assert len(scripts(texts)) >= 40
    for text in texts:
        published.check(text)
    assert not published.loads


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.text(max_size=300))
def test_the_mapped_vocabulary_gives_the_tokens_of_the_library_for_any_text(published: BothForms, text: str) -> None:
    published.check(text)


def test_the_mapped_vocabulary_gives_the_tokens_of_the_library_for_the_text_of_each_token(published: BothForms) -> None:
    for token in range(0, published.library.num_tokens, EACH_TOKEN):
        text = published.library.decode([token], skip_special_tokens=False)
        published.check(text)


def test_the_mapped_vocabulary_has_the_tokens_of_the_library(published: BothForms) -> None:
    num_tokens = published.library.num_tokens
    assert published.mapped.vocabulary(num_tokens + 9) == published.library.vocabulary(num_tokens + 9)
    assert published.mapped.added_token_ids == published.library.added_token_ids
    assert not published.loads
