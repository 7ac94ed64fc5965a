"""Conformance item 7: Qwen 3.5's own vocabulary, 248,077 tokens, against its golden tokenisations.

The rest of the tokenizer is that of the test checkpoints (published_tokenizer.py); both it and the runtime are tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwonnx.runtime.text.detokenizer import Detokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.published_tokenizer import published_tokenizer_json
from tests.checkpoints.tokenizer import SPECIAL_TOKENS

VECTORS: dict[str, list[int]] = json.loads(
    (Path(__file__).parent / "data" / "qwen35_token_vectors.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(published_tokenizer_json())


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
