"""Compile grammars in a separate process, which may be killed: `python -P grammar_check.py`.

A grammar of a few hundred bytes can make llguidance overflow the stack (a chain of rules or references) or run for
minutes (an intersection of multiples). A process cannot stop either from within. So a server first compiles each
grammar here, under limits on time, memory and stack: with a vocabulary of single bytes, up to the first masks.

Reads one Question a line and answers each with one line, a Reply. A question that goes beyond a limit ends the process
without a reply. Does not import qwonnx, to start quickly. grammar_checker.py is the other side.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from itertools import compress
from typing import TypedDict

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_MEMORY_BYTES = 1 << 30  # of address space
_STACK_BYTES = 1 << 20  # a server's threads have more
_IDLE_SECONDS = 60.0
_USUAL_BYTES = 1 << 20  # that a grammar holds, where it cannot be measured: nine of ten hold less
_HEAVY_BYTES = 128 << 20  # resident: a process that grew to this gives it back by ending

# A grammar often fails at its second to thirtieth token, so some beginnings of an answer are tried out.
_WALKS = 2
_TOKENS_OF_A_WALK = 32
_WALK_SECONDS = 0.2  # for all of them: masks of the published vocabulary take up to 40 ms


class Question(TypedDict):
    """The JSON of a line: a grammar, the special tokens that it may name (an end token first), seconds for it."""

    grammar: str
    special_tokens: Sequence[str]
    seconds: float


class Reply(TypedDict):
    """The answer: the reason of a refusal, or an empty text; bytes that the compiled grammar holds; is this the end."""

    reason: str
    num_bytes: int
    ends: bool


def limits() -> LLParserLimits:
    """Limits for a grammar, here and in the engine; the others are llguidance's defaults.

    They bound the first mask to 0.2 s and a later one to 0.1 s, on the published vocabulary. With the default fuel,
    `(a{1000}){1000}` takes 1.5 s and 100 MB.
    """
    return LLParserLimits(max_lexer_states=50_000, initial_lexer_fuel=200_000, verbose_errors=False)


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of a grammar; in its error state if the grammar cannot be followed.

    Args:
        grammar: as llguidance's grammar_from_...() writes it.
        tokenizer: of the answer.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    first = matcher.deep_copy()
    mask = first.compute_bitmask()  # only this finds a grammar that no token can begin
    if first.is_error():
        return first
    choose, ends = random.Random(0), frozenset(tokenizer.eos_tokens)
    ends_at = time.perf_counter() + _WALK_SECONDS
    for _ in range(_WALKS):
        walking = first.deep_copy()
        mask_here = mask
        for _ in range(_TOKENS_OF_A_WALK):
            if time.perf_counter() > ends_at:
                break
            token = _drawn(mask_here, choose, ends)
            if token is None or not walking.consume_token(token) or walking.is_stopped():
                break
            mask_here = walking.compute_bitmask()
        if walking.is_error():
            return walking
    return matcher


def _drawn(mask: bytes, choose: random.Random, ends: frozenset[int]) -> int | None:
    """One of the allowed tokens that do not end the answer, or None."""
    places = list(compress(range(len(mask)), mask))  # of its bytes that are not 0: a vocabulary has 250,000 tokens
    choose.shuffle(places)
    for place in places:
        tokens = [8 * place + bit for bit in range(8) if mask[place] >> bit & 1]
        if going_on := [token for token in tokens if token not in ends]:
            return choose.choice(going_on)
    return None


class _Bytes:
    """A vocabulary of the 256 bytes, and of special tokens after them."""

    bos_token_id: int | None = None
    eos_token_id = 256

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [token.encode() for token in special_tokens]
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


class _Clock:
    """Ends the process after so many seconds of its processor time.

    The system does it, so a native call cannot delay it. Windows has no such clock; there the parent's remains.
    """

    def start(self, seconds: float) -> None:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, seconds)

    def stop(self) -> None:
        self.start(0)


def _bound() -> None:
    try:
        import resource
    except ImportError:  # Windows has neither these limits nor a nice level
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)


def _is_asked() -> bool:
    """Wait for a question; False after a minute without one, so that the process ends."""
    if os.name == "nt":  # cannot wait for a pipe with a limit: there the process ends with its server
        return True
    return bool(select.select([sys.stdin.buffer], [], [], _IDLE_SECONDS)[0])


def _is_heavy() -> bool:
    """Whether the process holds much memory, or cannot know it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # getrusage's peak counts the parent's memory too
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _HEAVY_BYTES
    except OSError:
        return True


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2: bytes in use are those of mapped blocks and of all others."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks")),
        ("mapped", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks")),
        ("others", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("fordblks", "keepcost")),
    )


def _bytes_in_use() -> int | None:
    """What this process has allocated, where the C library can tell."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, TypeError, AttributeError):  # another system, another libc, or an older one
        return None
    ask.restype = _Mallinfo
    answer = ask()
    return int(answer.mapped) + int(answer.others)


def _answer(question: Question) -> Reply | None:
    """The answer to a question; None: the compiler raised, and nothing is known."""
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(question["special_tokens"])), slices=[])
    replies: list[Reply] = []

    def check() -> None:
        before = _bytes_in_use()
        matcher = compiled(question["grammar"], tokenizer)
        after = _bytes_in_use()
        num_bytes = _USUAL_BYTES if before is None or after is None else max(0, after - before)
        reason = matcher.get_error()
        replies.append({"reason": reason, "num_bytes": 0 if reason else num_bytes, "ends": False})

    thread = threading.Thread(target=check)  # its stack is small
    thread.start()
    thread.join()
    return replies[0] if replies else None


def main() -> None:
    _bound()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the server too, which ends this process
    threading.stack_size(_STACK_BYTES)
    clock = _Clock()
    while _is_asked() and (line := sys.stdin.buffer.readline()):
        question: Question = json.loads(line)
        clock.start(question["seconds"])
        reply = _answer(question)
        clock.stop()
        if reply is None:
            sys.exit(1)
        reply["ends"] = _is_heavy()
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
        if reply["ends"]:
            return


if __name__ == "__main__":
    main()
