from __future__ import annotations

import json
import random
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.resident import resident_bytes
from tests.runtime.counting_model import ADDED_TOKENS, SPECIAL_TOKENS, tokenizer_json

SOURCE = json.dumps(tokenizer_json())
TOKENIZER = Tokenizer(SOURCE)
REFERENCE = tokenizers.Tokenizer.from_str(SOURCE)
ANY_IDS = st.lists(st.integers(0, TOKENIZER.num_tokens - 1), max_size=30)


@given(ids=ANY_IDS, skip=st.booleans())
def test_decoding_is_that_of_the_reference_for_any_tokens(ids: list[int], skip: bool) -> None:
    assert TOKENIZER.decode(ids, skip_special_tokens=skip) == REFERENCE.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=40))
def test_encoding_is_that_of_the_reference(text: str) -> None:
    assert TOKENIZER.encode(text) == REFERENCE.encode(text, add_special_tokens=False).ids


def test_an_added_token_with_a_space_stands_for_its_own_text() -> None:
    document = tokenizer_json()
    document["added_tokens"].append({**document["added_tokens"][-1], "id": TOKENIZER.num_tokens, "content": "a b é"})
    tokenizer = Tokenizer(json.dumps(document))
    assert tokenizer.decode(tokenizer.encode("xa b éy")) == "xa b éy"
    assert tokenizer.num_tokens == TOKENIZER.num_tokens + 1


def test_tokens_that_structure_a_conversation_are_special_and_thinking_is_not() -> None:
    for name in SPECIAL_TOKENS:
        token = TOKENIZER.token_id(name)
        assert token is not None
        assert TOKENIZER.is_special(token)
    for name in ADDED_TOKENS:
        token = TOKENIZER.token_id(name)
        assert token is not None
        assert not TOKENIZER.is_special(token)
    assert TOKENIZER.token_id("<|nothing|>") is None


def test_an_id_without_a_token_has_no_text() -> None:
    assert TOKENIZER.token_bytes(TOKENIZER.num_tokens) == b""


@pytest.mark.parametrize("source", ["", "[]", "{}", '{"decoder": {"type": "ByteLevel"}}'])
def test_a_malformed_file_is_refused(source: str) -> None:
    with pytest.raises(TokenizerError, match="malformed"):
        Tokenizer(source)


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    document = tokenizer_json() | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    with pytest.raises(TokenizerError, match="WordPiece"):
        Tokenizer(json.dumps(document))


def test_settings_of_a_training_run_neither_cut_a_prompt_nor_fill_it_up() -> None:
    document = tokenizer_json() | {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 99},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    }
    text = "longer than four tokens"
    assert Tokenizer(json.dumps(document)).encode(text) == TOKENIZER.encode(text)


def test_a_panic_of_the_library_is_a_malformed_file() -> None:
    document = tokenizer_json() | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    with pytest.raises(TokenizerError, match="malformed"):
        Tokenizer(json.dumps(document))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is asked of /proc")
def test_encoding_keeps_nothing_of_what_it_saw() -> None:
    """Each thread of the library would cache 10,000 words, here 60 MB."""
    words = random.Random(0)
    before = resident_bytes()
    for _ in range(10_000):
        TOKENIZER.encode("".join(words.choices("abcdefgh", k=200)))
    assert resident_bytes() - before < 8 << 20
