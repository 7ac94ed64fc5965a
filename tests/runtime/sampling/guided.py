"""Random text under a guide, as from a model with random weights, but without the model.

It uses the tiny checkpoint's tokenizer, and draws new logits for each token. Closing marks are more likely and white
space is less likely, or most texts would never end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from qwonnx.runtime.sampling.grammar import Constraint, GrammarCompiler
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.sampler import Sampler
from qwonnx.runtime.sampling.scores import FloatArray
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tokenizer import NUM_TOKENS, build_tokenizer, token_ids

VOCAB_SIZE = NUM_TOKENS + 31  # rows that pad the embedding
ENDS = (token_ids()["<|im_end|>"], token_ids()["<|endoftext|>"])
_CLOSING = (b'"', b"}", b"]", b'"}', b'"]', b"</", b"parameter", b">", b"function")


@dataclass(frozen=True, slots=True)
class Said:
    """A text, without its end token, and whether its guide allowed it to end there."""

    token_ids: list[int]
    text: str
    is_complete: bool


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(build_tokenizer())


@cache
def compiler() -> GrammarCompiler:
    """A compiler that trusts its grammars: a process for each would take most of the tests' time."""
    return GrammarCompiler(tokenizer(), ENDS, NUM_TOKENS, trusted=True)


def say(guide: Guide, seed: int, max_tokens: int = 600, *, ignore_eos: bool = False) -> Said:
    """Generate a random text under a guide."""
    constraint = compiler().constraint(guide, ignore_eos=ignore_eos)
    constraint.begin()
    sampler = Sampler(SamplingParams(seed=seed), (), NUM_TOKENS)
    generator = np.random.default_rng(seed)
    likely = _likely()
    said: list[int] = []
    while not constraint.is_complete and len(said) < max_tokens:
        logits = likely + generator.standard_normal(VOCAB_SIZE, dtype=np.float32) * 2
        token = sampler.sample(logits, constraint.allowed())
        assert 0 <= token < NUM_TOKENS
        constraint.accept(token)
        said.append(token)
    return Said(said, tokenizer().decode(said), constraint.is_complete)


def may_follow(constraint: Constraint) -> set[int]:
    """The tokens that a constraint allows next."""
    allowed = constraint.allowed()
    ids = set(allowed.ids.tolist())
    return set(range(NUM_TOKENS)) - ids if allowed.all_but else ids


@cache
def _likely() -> FloatArray:
    likely = np.zeros(VOCAB_SIZE, dtype=np.float32)
    for token in range(NUM_TOKENS):
        text = tokenizer().token_bytes(token)
        likely[token] = 4 if text in _CLOSING else -3 if not text.strip() and text != b"\n" else 0
    likely[list(ENDS)] = 4
    likely[NUM_TOKENS:] = 100  # a test fails if one of these is taken
    return likely
