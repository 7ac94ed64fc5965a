"""Guides as masks of the allowed next tokens, computed by llguidance while the model runs.

    Guide -> checked (in a separate process) -> compiled, kept -> a Constraint for each request
    Constraint: begin -> [mask in a worker thread | the model's step] -> allowed -> sample -> accept -> [mask | step]

The first guide causes the setup: worker threads import llguidance and convert the vocabulary (seconds for 250,000
tokens).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qwonnx.runtime.errors import EngineClosedError, GuideError, InvalidRequestError, QueueFullError
from qwonnx.runtime.sampling.guide import Guide, GuideKind
from qwonnx.runtime.sampling.sampler import AllowedTokens
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_Result = TypeVar("_Result")

_COMPILE_SECONDS = 5
_COMPILE_THREADS = 2
_MAX_WAITING = 16  # grammars that wait for compilation or are being compiled
_MAX_KEPT = 64  # compiled grammars
_MASK_THREADS = min(4, os.cpu_count() or 1)  # a mask usually takes 0.1 ms

_INHERITED = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "SYSTEMROOT")  # all that the process needs; no secrets
_MASK_SECONDS = 2.0  # after which a request fails: all other requests wait with it

_THINK_END = b"</think>"
_MAX_BREAKS = 2  # line breaks that follow </think> in the model's own format


@dataclass(frozen=True)
class _Vocabulary:
    """The tokens, as constraints need them. Ids from num_tokens on are padding of the embedding."""

    tokenizer: Tokenizer
    end_token_ids: tuple[int, ...]
    num_tokens: int

    @cached_property
    def special_token_ids(self) -> list[int]:
        """Includes <think> and <tool_call>: a grammar refers to these tokens by name, not by text."""
        return [token for token in self.tokenizer.added_token_ids if token < self.num_tokens]

    @cached_property
    def all_but_ends(self) -> AllowedTokens:
        return AllowedTokens(np.asarray(self.end_token_ids, dtype=np.intp), all_but=True)

    @cached_property
    def breaks(self) -> dict[int, int]:
        """Tokens that consist of line breaks only, and the number of breaks in each."""
        encoded = ((count, self.tokenizer.encode("\n" * count)) for count in range(1, _MAX_BREAKS + 1))
        return {ids[0]: count for count, ids in encoded if len(ids) == 1}


class GrammarCompiler:
    """Makes constraints from guides. Safe to use from several threads.

    Args:
        tokenizer: the artifact's.
        end_token_ids: tokens that end an answer; they are allowed where the grammar may end.
        num_tokens: ids from here on are never allowed.
        trusted: the guides cannot harm the process, so they are not checked in a separate one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_token_ids: Iterable[int],
        num_tokens: int,
        *,
        trusted: bool = False,
    ) -> None:
        ends = tuple(sorted(token for token in end_token_ids if 0 <= token < num_tokens))
        self._vocabulary = _Vocabulary(tokenizer, ends, num_tokens)
        self._trusted = trusted
        self._compiled: OrderedDict[tuple[str, ...], Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()  # of _compiled
        self._tokenizer_lock = threading.Lock()
        self._ll_tokenizer: LLTokenizer | None = None
        # Threads start on first use.
        self._compilers = ThreadPoolExecutor(_COMPILE_THREADS, thread_name_prefix="qwonnx-compile")
        self._workers = ThreadPoolExecutor(_MASK_THREADS, thread_name_prefix="qwonnx-mask")

    def compile(self, guide: Guide) -> Future[LLMatcher]:
        """Start to check and compile a guide, so that constraint() finds it ready. Do not cancel the future.

        Raises:
            InvalidRequestError: raised by the future: the guide cannot be followed; the reason is llguidance's.
            QueueFullError: too many guides are being compiled.
            EngineClosedError: close() was called.
        """
        key = (guide.kind.value, guide.source, guide.param)
        with self._lock:
            entry = self._compiled.get(key)
            if entry is None or (entry.done() and (entry.cancelled() or entry.exception() is not None)):
                if sum(not other.done() for other in self._compiled.values()) >= _MAX_WAITING:
                    raise QueueFullError(f"{_MAX_WAITING} guides are being compiled already: try again later")
                try:
                    entry = self._compiled[key] = self._compilers.submit(self._compile, guide)
                except RuntimeError as error:
                    raise EngineClosedError("the engine is closed: open the artifact again") from error
            self._compiled.move_to_end(key)
            while len(self._compiled) > _MAX_KEPT:
                self._compiled.popitem(last=False)
        return entry

    def constraint(self, guide: Guide, *, ignore_eos: bool) -> Constraint:
        """A new constraint of a guide; waits until the guide is compiled.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: as compile() and its future raise them.
        """
        try:
            compiled = self.compile(guide).result()
        except CancelledError:
            raise EngineClosedError("the engine was closed: open the artifact again") from None
        with self._lock:
            matcher = compiled.deep_copy()
        return Constraint(matcher, self._vocabulary, self._workers, guide.after_thinking, ignore_eos)

    def close(self) -> None:
        """End the threads. A thread that compiles a grammar may need a few more seconds."""
        for threads in (self._compilers, self._workers):
            threads.shutdown(wait=True, cancel_futures=True)

    def _compile(self, guide: Guide) -> LLMatcher:
        from llguidance import LLMatcher  # takes 0.1 s, so only on demand

        from qwonnx.runtime.sampling.grammar_check import compiled

        if not self._vocabulary.end_token_ids:
            raise InvalidRequestError(f"{guide.param} needs a model with an end token: use another", guide.param)
        write: dict[GuideKind, Callable[[str], str]] = {
            GuideKind.JSON_SCHEMA: LLMatcher.grammar_from_json_schema,
            GuideKind.REGEX: LLMatcher.grammar_from_regex,
            GuideKind.LARK: LLMatcher.grammar_from_lark,
        }
        try:
            grammar = write[guide.kind](guide.source)
            reason = "" if self._trusted else _complaint(grammar, self._vocabulary)
            if not reason:
                matcher = _shielded(lambda: compiled(grammar, self._tokenizer()))
                reason = matcher.get_error()
        except (GuideError, ValueError) as error:
            reason = str(error)
        if reason:
            message = f"{guide.param} cannot be followed ({_one_line(reason)}): change it"
            raise InvalidRequestError(message, guide.param, "invalid_guide")
        return matcher

    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._tokenizer_lock:
            if self._ll_tokenizer is None:
                vocabulary = self._vocabulary
                self._ll_tokenizer = LLTokenizer(
                    TokenizerWrapper(_Tokens(vocabulary)),
                    n_vocab=vocabulary.num_tokens,
                    eos_token=list(vocabulary.end_token_ids),
                )
            return self._ll_tokenizer


class Constraint:
    """One request's progress through its guide. For the engine's thread, which waits if a mask is not ready.

    is_complete: only the end can follow; then no more calls are made.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: _Vocabulary,
        workers: ThreadPoolExecutor,
        after_thinking: bool,
        ignore_eos: bool,
    ) -> None:
        self.is_complete = False
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._workers = workers
        self._ignore_eos = ignore_eos
        self._thoughts: bytes | None = b"" if after_thinking else None  # last bytes of the reasoning; None after it
        self._breaks_left = 0
        self._mask: Future[AllowedTokens] | None = None

    def begin(self) -> None:
        """Start to compute the first mask."""
        if self._thoughts is None:
            self._mask = self._workers.submit(self._compute)

    def allowed(self) -> AllowedTokens:
        """The tokens that may come next, at least one.

        Raises:
            GuideError: the grammar became too complex.
        """
        if self._thoughts is not None:
            return self._vocabulary.all_but_ends
        assert self._mask is not None, "begin() first"
        try:
            allowed = self._mask.result(_MASK_SECONDS)
        except TimeoutError:
            raise GuideError(f"the guide cannot continue (a mask takes more than {_MASK_SECONDS:g} s)") from None
        if self._breaks_left:
            breaks = [token for token, count in self._vocabulary.breaks.items() if count <= self._breaks_left]
            change = np.setdiff1d if allowed.all_but else np.union1d
            return AllowedTokens(change(allowed.ids, np.asarray(breaks, dtype=np.intp)), allowed.all_but)
        return allowed

    def accept(self, token_id: int) -> None:
        """Take the chosen token, and start to compute the next mask.

        Raises:
            GuideError: the grammar became too complex.
        """
        if self._thoughts is not None:
            self._think(token_id)
            return
        breaks = self._vocabulary.breaks.get(token_id, 0) if self._breaks_left else 0
        self._breaks_left = max(0, self._breaks_left - breaks) if breaks else 0
        if breaks:
            return  # not part of the answer: the mask stays
        if not _shielded(lambda: self._matcher.consume_token(token_id)):
            raise GuideError(f"the guide cannot continue ({_one_line(self._matcher.get_error())})")
        self.is_complete = token_id in self._vocabulary.end_token_ids or self._matcher.is_stopped()
        if not self.is_complete:
            self._mask = self._workers.submit(self._compute)

    def _think(self, token_id: int) -> None:
        """Wait for </think>, which may be one token or several."""
        assert self._thoughts is not None
        self._thoughts += self._vocabulary.tokenizer.token_bytes(token_id)
        _, ended, rest = self._thoughts.partition(_THINK_END)
        if not ended:
            self._thoughts = self._thoughts[1 - len(_THINK_END) :]
            return
        if rest.strip(b"\n"):
            raise GuideError("the reasoning ended in the middle of a token that also begins the answer")
        self._thoughts = None
        self._breaks_left = max(0, _MAX_BREAKS - len(rest))
        self.begin()

    def _compute(self) -> AllowedTokens:
        """Compute a mask, in a worker thread, never while the matcher takes a token. llguidance releases the GIL."""
        packed = _shielded(self._matcher.compute_bitmask)
        if self._matcher.is_error():
            raise GuideError(f"the guide cannot continue ({_one_line(self._matcher.get_error())})")
        vocabulary = self._vocabulary
        mask = np.unpackbits(np.frombuffer(packed, np.uint8), count=vocabulary.num_tokens, bitorder="little")
        if self._ignore_eos:
            goes_on = mask.copy()
            goes_on[list(vocabulary.end_token_ids)] = 0
            mask = goes_on if goes_on.any() else mask
        num_allowed = np.count_nonzero(mask)
        if not num_allowed:
            raise GuideError("the guide cannot continue (no token of the vocabulary may follow)")
        all_but = 2 * num_allowed > mask.size
        return AllowedTokens(np.flatnonzero(mask == 0 if all_but else mask), bool(all_but))


class _Tokens:
    """The vocabulary in the form that llguidance's TokenizerWrapper expects."""

    bos_token_id: int | None = None

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._tokenizer = vocabulary.tokenizer
        self.eos_token_id = vocabulary.end_token_ids[0]
        self.tokens = self._tokenizer.vocabulary(vocabulary.num_tokens)
        self.special_token_ids = vocabulary.special_token_ids

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", errors="replace"))


def _complaint(grammar: str, vocabulary: _Vocabulary) -> str:
    """Check a grammar in a separate process with a time limit; return the reason of a refusal, or an empty text."""
    from qwonnx.runtime.sampling.grammar_check import Question

    tokens = dict.fromkeys((vocabulary.end_token_ids[0], *vocabulary.special_token_ids))
    named = [vocabulary.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    question = Question(grammar=grammar, special_tokens=named)
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    program = Path(__file__).with_name("grammar_check.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(program), str(_COMPILE_SECONDS)],
            input=json.dumps(question).encode(),
            env={"PYTHONPATH": os.pathsep.join(sys.path), **inherited},
            capture_output=True,
            timeout=2 * _COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {_COMPILE_SECONDS} seconds to compile"
    except OSError as error:
        return f"it cannot be checked: {error.strerror}"
    if done.returncode:
        return f"it needs more than {_COMPILE_SECONDS} seconds, or too much memory or stack, to compile"
    reason: str = json.loads(done.stdout)
    return reason


def _shielded(function: Callable[[], _Result]) -> _Result:
    """Call llguidance. Its panics are not Exceptions, and they must not stop an engine.

    Raises:
        GuideError: it raised.
    """
    try:
        return function()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise GuideError(f"the guide cannot continue ({_one_line(str(error))})") from error


def _one_line(text: str) -> str:
    """A reason of llguidance's in one line of at most 300 characters."""
    words = " ".join(text.replace("<non-verbose/>", "").split())
    return words if len(words) <= 300 else words[:297] + "..."
