"""Guides as masks of the allowed next tokens, computed by llguidance while the model runs.

    Guide -> checked (in a separate process: grammar_checker.py) -> compiled, kept -> a Constraint for each request
    Constraint: begin -> [mask in a worker thread | the model's step] -> allowed -> sample -> accept -> [mask | step]

A guide that nobody waits for any more is abandoned: it leaves the queue, or its process is killed.

The first guide causes the setup: worker threads import llguidance and convert the vocabulary (seconds for 250,000
tokens).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from msgspec import Struct

from qwonnx.runtime.errors import EngineClosedError, GuideError, InvalidRequestError, QueueFullError
from qwonnx.runtime.sampling.grammar_checker import GrammarChecker
from qwonnx.runtime.sampling.guide import Guide, GuideKind
from qwonnx.runtime.sampling.kept_grammars import Compilation, KeptGrammars
from qwonnx.runtime.sampling.refusal import in_our_words
from qwonnx.runtime.sampling.sampler import AllowedTokens
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_Result = TypeVar("_Result")

_COMPILE_THREADS = 2
_MAX_WAITING = 16  # grammars that wait for compilation or are being compiled
_MASK_THREADS = min(4, os.cpu_count() or 1)  # a mask usually takes 0.1 ms

_MASK_SECONDS = 1.0  # after which a request fails: all other requests wait with it

_THINK_END = b"</think>"
_MAX_BREAKS = 2  # line breaks that follow </think> in the model's own format


class _Vocabulary(Struct, frozen=True, dict=True):
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
        on_compiled: called with the seconds that each guide took, compiled or refused; one call at a time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_token_ids: Iterable[int],
        num_tokens: int,
        *,
        trusted: bool = False,
        on_compiled: Callable[[float], None] | None = None,
    ) -> None:
        ends = tuple(sorted(token for token in end_token_ids if 0 <= token < num_tokens))
        self._vocabulary = _Vocabulary(tokenizer, ends, num_tokens)
        self._trusted = trusted
        self._on_compiled = on_compiled
        self._kept = KeptGrammars()
        self._lock = threading.RLock()  # of _kept; a future calls its callbacks at once if it is done
        self._checker = GrammarChecker()
        self._tokenizer_lock = threading.Lock()
        self._ll_tokenizer: LLTokenizer | None = None
        # Threads start on first use.
        self._compilers = ThreadPoolExecutor(_COMPILE_THREADS, thread_name_prefix="qwonnx-compile")
        self._workers = ThreadPoolExecutor(_MASK_THREADS, thread_name_prefix="qwonnx-mask")

    def compile(self, guide: Guide, owner: str = "") -> Future[LLMatcher]:
        """Start to check and compile a guide, so that constraint() finds it ready.

        The future is the caller's own. If all callers cancel theirs, the work is abandoned.

        Args:
            guide: the form of an answer.
            owner: whom the request is for. A guide that another owner's request has compiled is not found: the time
                would tell that it was used.

        Raises:
            InvalidRequestError: raised by the future: the guide cannot be followed; the reason is llguidance's.
            QueueFullError: too many guides are being compiled.
            EngineClosedError: close() was called.
        """
        key = (owner, guide.kind.value, guide.source, guide.param)
        with self._lock:
            entry = self._kept.find(key)
            if entry is None:
                if self._kept.num_running >= _MAX_WAITING:
                    raise QueueFullError(f"{_MAX_WAITING} guides are being compiled already: try again later")
                entry = Compilation()
                try:
                    entry.work = self._compilers.submit(self._compile, guide, entry)
                except RuntimeError as error:
                    raise EngineClosedError("the engine is closed: open the artifact again") from error
                self._kept.add(key, entry)
                entry.work.add_done_callback(partial(self._settle, key, entry))
            entry.num_callers += 1
        answer: Future[LLMatcher] = Future()
        answer.add_done_callback(partial(self._leave, entry))
        entry.work.add_done_callback(partial(_pass_on, answer))
        return answer

    def constraint(self, guide: Guide, *, ignore_eos: bool, owner: str = "") -> Constraint:
        """A new constraint of a guide; waits until the guide is compiled for this owner.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: as compile() and its future raise them.
        """
        try:
            compiled = self.compile(guide, owner).result()
        except CancelledError:
            raise EngineClosedError("the engine was closed: open the artifact again") from None
        with self._lock:
            matcher = compiled.deep_copy()
        return Constraint(matcher, self._vocabulary, self._workers, guide.after_thinking, ignore_eos)

    def rest(self) -> None:
        """End the processes that check grammars and wait for one; the next guide starts one."""
        self._checker.rest()

    def close(self) -> None:
        """End the threads and the processes that check grammars."""
        self._checker.close()
        for threads in (self._compilers, self._workers):
            threads.shutdown(wait=True, cancel_futures=True)

    def _settle(self, key: tuple[str, ...], entry: Compilation, work: Future[LLMatcher]) -> None:
        """Keep nothing of a guide that was refused: it is large perhaps, and seldom asked for again."""
        with self._lock:
            if self._on_compiled is not None and not work.cancelled():
                self._on_compiled(time.monotonic() - entry.asked_at)
            if work.cancelled() or work.exception() is not None:
                self._kept.drop(key, entry)
            else:
                self._kept.settle(key, entry)

    def _leave(self, entry: Compilation, answer: Future[LLMatcher]) -> None:
        """A caller has its answer, or does not want it any more."""
        with self._lock:
            entry.num_callers -= 1
            if entry.num_callers or entry.work.done():
                return
            entry.check.abandon()  # a later caller of the same guide starts anew
        entry.work.cancel()

    def _compile(self, guide: Guide, entry: Compilation) -> LLMatcher:
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
            reason = ""
            if not self._trusted:
                verdict = self._checker.verdict(grammar, self._named_tokens(), entry.check)
                reason, entry.num_bytes = verdict.reason, verdict.num_bytes
            if entry.check.is_abandoned:
                raise CancelledError
            if not reason:
                matcher = _shielded(lambda: compiled(grammar, self._tokenizer()))
                reason = matcher.get_error()
        except (GuideError, ValueError) as error:
            reason = str(error)
        if reason:
            message = f"{guide.param} cannot be followed ({in_our_words(reason)}): change it"
            raise InvalidRequestError(message, guide.param, "invalid_guide")
        return matcher

    def _named_tokens(self) -> list[str]:
        """The special tokens that a grammar may name, an end token first."""
        vocabulary = self._vocabulary
        tokens = dict.fromkeys((vocabulary.end_token_ids[0], *vocabulary.special_token_ids))
        return [vocabulary.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]

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
        if self._advance(token_id):
            self._mask = self._workers.submit(self._compute)

    def resume(self, generated: Sequence[int]) -> None:
        """Take tokens as accept() would, before begin().

        Raises:
            GuideError: it does not allow them, or ends with them.
        """
        for token_id in generated:
            if not self.is_complete:
                self._advance(token_id)
        if self.is_complete:
            raise GuideError("the guide has ended")

    def _advance(self, token_id: int) -> bool:
        """Take a token; whether another mask is needed then. Raises GuideError."""
        if self._thoughts is not None:
            return self._think(token_id)
        breaks = self._vocabulary.breaks.get(token_id, 0) if self._breaks_left else 0
        self._breaks_left = max(0, self._breaks_left - breaks) if breaks else 0
        if breaks:
            return False  # not part of the answer: the mask stays
        if not _shielded(lambda: self._matcher.consume_token(token_id)):
            raise GuideError(f"the guide cannot continue ({in_our_words(self._matcher.get_error())})")
        self.is_complete = token_id in self._vocabulary.end_token_ids or self._matcher.is_stopped()
        return not self.is_complete

    def _think(self, token_id: int) -> bool:
        """Wait for </think>, which may be one token or several; whether it has come."""
        assert self._thoughts is not None
        self._thoughts += self._vocabulary.tokenizer.token_bytes(token_id)
        _, ended, rest = self._thoughts.partition(_THINK_END)
        if not ended:
            self._thoughts = self._thoughts[1 - len(_THINK_END) :]
            return False
        if rest.strip(b"\n"):
            raise GuideError("the reasoning ended in the middle of a token that also begins the answer")
        self._thoughts = None
        self._breaks_left = max(0, _MAX_BREAKS - len(rest))
        return True

    def _compute(self) -> AllowedTokens:
        """Compute a mask, in a worker thread, never while the matcher takes a token. llguidance releases the GIL."""
        packed = _shielded(self._matcher.compute_bitmask)
        if self._matcher.is_error():
            raise GuideError(f"the guide cannot continue ({in_our_words(self._matcher.get_error())})")
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


def _pass_on(answer: Future[LLMatcher], work: Future[LLMatcher]) -> None:
    """Give the outcome of a compilation to one of its callers."""
    if not answer.set_running_or_notify_cancel():
        return
    if work.cancelled():
        answer.set_exception(EngineClosedError("the engine was closed: open the artifact again"))
        return
    error = work.exception()
    if error is None:
        answer.set_result(work.result())
    elif isinstance(error, CancelledError):  # closing abandoned it
        answer.set_exception(EngineClosedError("the engine was closed: open the artifact again"))
    else:
        answer.set_exception(error)


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
        raise GuideError(f"the guide cannot continue ({in_our_words(str(error))})") from error
