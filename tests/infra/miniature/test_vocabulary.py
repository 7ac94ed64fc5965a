"""The tokenizer has Qwen's form, and is made for the glossary."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from infra.miniature import glossary, vocabulary
from tests.checkpoints import SPECIAL_TOKENS

pytestmark = pytest.mark.fast


def test_special_tokens_end_a_vocabulary_of_about_six_thousand(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    assert size == vocabulary.VOCAB_SIZE
    assert list(vocabulary.token_ids(tokenizer).values()) == list(range(size - len(SPECIAL_TOKENS), size))


def test_every_name_comes_back_and_takes_few_tokens(tokenizer: Tokenizer) -> None:
    lengths = []
    for fact in glossary.facts():
        ids = tokenizer.encode(fact.name).ids
        assert tokenizer.decode(ids) == fact.name
        lengths.append(len(ids))
    assert np.mean(lengths) < 4


def test_other_text_comes_back_too(tokenizer: Tokenizer) -> None:
    for text in ("Hello, world! 1234", "def f(x):\n    return x", "🙂👍🏽", "ᚠᛇᚻ", "  \n\n x"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
