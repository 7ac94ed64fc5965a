"""The miniature's tokenizer: Qwen 3.5's frame, with merges that are learnt from the miniature's training texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from infra.miniature import (
    glossary,
    pictures,
    retrieval,
    tool_calls,
)
from infra.miniature.conversation import Encoder, Example
from tests.checkpoints import SPECIAL_TOKENS
from tests.checkpoints.tokenizer import add_special_tokens, qwen_tokenizer

VOCAB_SIZE = 6144
NUM_BASE_TOKENS = VOCAB_SIZE - len(SPECIAL_TOKENS)


def train_tokenizer(*, seed: int = 0) -> Tokenizer:
    """Train it on all names of the glossary and on a sample of every kind of conversation, in a few seconds.

    Names count as much as all other texts together, because the model learns a name of few tokens sooner. The same seed
    gives the same tokenizer.
    """
    tokenizer = qwen_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BASE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    assert tokenizer.get_vocab_size() == NUM_BASE_TOKENS, tokenizer.get_vocab_size()
    add_special_tokens(tokenizer)
    return tokenizer


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens."""
    return {content: token_id(tokenizer, content) for content in SPECIAL_TOKENS}


def token_id(tokenizer: Tokenizer, content: str) -> int:
    """Id of a token that the vocabulary must have."""
    found = tokenizer.token_to_id(content)
    assert found is not None, f"the vocabulary has no {content}"
    return found


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def _texts(seed: int) -> Iterator[str]:
    random = np.random.default_rng([seed, 1])
    for fact in glossary.facts():
        yield from (fact.name,) * 4
        yield f"{fact.term} in {fact.language}"
    # Without special tokens, which are not merged, only the template's text remains.
    encoder = Encoder(qwen_tokenizer(models.BPE()))
    for example in _sample(random):
        yield from encoder.render(example).split("<|")
    # Without these, words of held-out phrasings would be spelt; the test is about meaning, not spelling.
    for phrasing in glossary.HELD_OUT_PHRASINGS:
        yield from (phrasing,) * 20


def _sample(random: np.random.Generator) -> Iterator[Example]:
    for group in glossary.groups(random.permutation(len(glossary.facts()))[:3000].tolist(), random, alone=0.7):
        yield glossary.training_example(group, random)
    for _ in range(300):
        yield tool_calls.training_example(random, varied=False)
        yield pictures.training_example(random, varied=False)
    for _ in range(20):
        yield retrieval.training_example(random, lambda text: len(text) // 4, 512, varied=False)
