"""A bound for the reasoning: free before it, the closing tag after it, nothing after that."""

from __future__ import annotations

import pytest

from qwonnx.runtime.sampling.thinking_budget import ThinkingBudget
from tests.runtime.sampling.guided import tokenizer

pytestmark = pytest.mark.fast

CLOSING = "\n</think>\n\n"


def forced_text(budget: ThinkingBudget) -> str:
    """What the budget forces from here on."""
    tokens: list[int] = []
    while (token := budget.forced()) is not None:
        budget.accept(token)
        tokens.append(token)
    return tokenizer().decode(tokens)


def test_the_reasoning_is_closed_after_so_many_tokens_and_only_once() -> None:
    thoughts = tokenizer().encode("He asks me about the weather.")
    budget = ThinkingBudget(len(thoughts), tokenizer())
    for token in thoughts:
        assert budget.forced() is None
        budget.accept(token)
    assert forced_text(budget) == CLOSING
    for token in tokenizer().encode("It rains. <think> again and again"):
        budget.accept(token)
        assert budget.forced() is None


@pytest.mark.parametrize("written", ["Hm.\n</think>\n\n", "</think>"])
def test_reasoning_that_ends_in_time_is_left_alone(written: str) -> None:
    tokens = tokenizer().encode(written)
    budget = ThinkingBudget(len(tokens), tokenizer())
    for token in [*tokens, *tokenizer().encode("Yes. " * 20)]:
        assert budget.forced() is None
        budget.accept(token)


def test_a_closing_tag_of_many_tokens_is_seen() -> None:
    budget = ThinkingBudget(20, tokenizer())
    for byte in b"a</think>":
        budget.accept(next(t for t in range(tokenizer().num_tokens) if tokenizer().token_bytes(t) == bytes([byte])))
    for token in tokenizer().encode("Yes. " * 20):
        budget.accept(token)
        assert budget.forced() is None


def test_without_tokens_it_closes_at_once() -> None:
    assert forced_text(ThinkingBudget(0, tokenizer())) == CLOSING
