"""Compile one grammar in a process of its own: `python -P grammar_check.py SECONDS` reads a Question on stdin.

llguidance compiles in time and depth that a few hundred bytes can drive without bound: a chain of rules or references
overflows the stack, an intersection of multiples takes minutes. Neither can be stopped from within a process, so what
a server compiles has first survived here, under limits on time, memory and stack: with a vocabulary of single bytes, up
to the first mask. Prints why a grammar is refused, nothing if it is not; imports nothing of qwonnx, to start quickly.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import TypedDict

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_MEMORY_BYTES = 2 << 30  # of addresses
_STACK_BYTES = 1 << 20  # a server's threads have more


class Question(TypedDict):
    """What is asked on stdin, as JSON: a grammar, and the special tokens that it may name, an end token first."""

    grammar: str
    special_tokens: Sequence[str]


def limits() -> LLParserLimits:
    """What a grammar may cost, here and in the engine; llguidance's own numbers where none is given."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A grammar at its beginning; in its error state if it cannot be followed."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    first = matcher.deep_copy()
    first.compute_bitmask()  # what nothing can begin is only found by trying
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
