"""Compile one grammar in a separate process: `python -P grammar_check.py SECONDS` reads a Question on stdin.

A grammar of a few hundred bytes can make llguidance overflow the stack (a chain of rules or references) or run for
minutes (an intersection of multiples). A process cannot stop either from within. So a server first compiles each
grammar here, under limits on time, memory and stack: with a vocabulary of single bytes, up to the first mask. Prints
the reason of a refusal as JSON, or an empty text. Does not import qwonnx, to start quickly.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import TypedDict

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_MEMORY_BYTES = 2 << 30  # of address space
_STACK_BYTES = 1 << 20  # a server's threads have more


class Question(TypedDict):
    """The JSON on stdin: a grammar, and the special tokens that it may name, an end token first."""

    grammar: str
    special_tokens: Sequence[str]


def limits() -> LLParserLimits:
    """Limits for a grammar, here and in the engine; the others are llguidance's defaults."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of a grammar; in its error state if the grammar cannot be followed."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    first = matcher.deep_copy()
    first.compute_bitmask()  # only this finds a grammar that no token can begin
    return first if first.is_error() else matcher


class _Bytes:
    """A vocabulary of the 256 bytes, and of special tokens after them."""

    bos_token_id: int | None = None
    eos_token_id = 256

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [token.encode() for token in special_tokens]
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _bound(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has neither these limits nor a nice level; the parent's clock remains
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)


def main() -> None:
    _bound(int(sys.argv[1]))
    question: Question = json.load(sys.stdin)
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(question["special_tokens"])), slices=[])
    complaints: list[str] = []
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=lambda: complaints.append(compiled(question["grammar"], tokenizer).get_error()))
    thread.start()
    thread.join()
    if not complaints:
        sys.exit(1)
    json.dump(complaints[0], sys.stdout)


if __name__ == "__main__":
    main()
