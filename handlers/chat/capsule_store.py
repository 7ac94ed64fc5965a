"""Capsules of conversations, kept so that another instance need not compute a conversation again.

A capsule's name is a hash of the artifact, the tokens and the owner, so a request determines which names to look for:
those of its own turns' ends. Clients send whole conversations as usual and do not notice capsules.

A failure of the store costs only time: the prompt is computed without a capsule. A store that does not answer costs at
most a few seconds, once: it is then left alone for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Generic, TypeVar

from msgspec import Struct

from qwonnx.handlers.chat.capsule_files import capsule_files
from qwonnx.runtime.cache.capsule import beginning_name, max_capsule_bytes
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import CapsuleError, EngineClosedError, SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.text.text_prompt import Prompt

logger = logging.getLogger(__name__)

# Ends of turns to look up, from the last one; each takes a round trip.
_LOOKS = 4
# A request waits so long for the store. Larger states than a network carries in this time are faster to compute.
_DEADLINE_SECONDS = 10.0
_WRITING_SECONDS = 60.0  # nobody waits for it but a function's invocation
_PATIENCE_SECONDS = 2.0  # after so long, it counts as one that does not answer
_PAUSE_SECONDS = 30.0  # without the store, after it did not answer in time
_DIGEST_BYTES = 32  # at the end of a capsule
_MOST_WAITING = 8  # threads that wait for the store


_Value = TypeVar("_Value")


class CapsuleStoreError(Exception):
    """The store does not answer, or has failed; the log has the reason."""


class _Outcome(Struct, Generic[_Value], frozen=True):
    """What work with the store gave.

    is_done: it ended well and in time.
    """

    is_done: bool
    value: _Value | None = None


class CapsuleStore:
    """A folder of capsules.

    Args:
        url: a path, or a URL of fsspec: s3://bucket/folder, gs://..., memory://...
        compress: write with zstd; both forms can be read.

    Raises:
        SettingsError: fsspec, its package for such a URL, or zstandard is not installed.
    """

    def __init__(self, url: str, *, compress: bool = False) -> None:
        if compress and find_spec("zstandard") is None:
            raise SettingsError(f"compressed capsules need zstandard: {how_to_install('capsules')}")
        self._compress = compress
        self._url = url
        self._files = capsule_files(url)
        self._free = threading.Semaphore(_MOST_WAITING)
        self._rests_until = 0.0  # time.monotonic()

    def close(self) -> None:
        """Let go of connections. The next use opens them again."""
        self._files.close()

    def open_again(self) -> None:
        """After the process was restored from a snapshot: new connections, credentials and times."""
        self._files = capsule_files(self._url, anew=True)
        self._rests_until = 0.0

    def restore(self, engine: Engine, prompt: Prompt, owner: str = "") -> None:
        """Load a prompt's longest capsule, if it is longer than the prefix that the engine has kept. Blocks.

        Args:
            engine: that reads the prompt.
            prompt: of the request.
            owner: see Engine.submit().

        Raises:
            EngineClosedError: the engine was closed.
        """
        self._in_time(lambda: self._restore_longest(engine, prompt, owner), _DEADLINE_SECONDS, "restored")

    def save(self, engine: Engine, prompt: Prompt, owner: str = "") -> None:
        """Write capsules of the ends of a prompt's first and last turn, unless they exist. Blocks.

        Baked prefixes are not written, because the artifact has them.
        """
        try:
            self._in_time(lambda: self._save_ends(engine, prompt, owner), _WRITING_SECONDS, "saved")
        except EngineClosedError:
            return

    def put(self, engine: Engine, name: str, token_ids: Sequence[int], owner: str, *, seconds: float) -> bytes | None:
        """Write the state after exactly these tokens, for a continuation. Blocks, for so many seconds at most.

        Args:
            engine: has the state.
            name: unique.
            token_ids: all of them.
            owner: see Engine.submit().
            seconds: for the store.

        Returns:
            the capsule's digest; None if it was not written.

        Raises:
            EngineClosedError: the engine was closed.
        """

        def write() -> bytes | None:
            data = engine.save_capsule(token_ids, compress=self._compress, owner=owner)
            if data is None:
                return None
            self._files.write(_continuation(name), data)
            return data[-_DIGEST_BYTES:]

        return self._in_time(write, seconds, "saved").value

    def take(self, name: str, at_most: int) -> bytes | None:
        """Read a continuation's capsule and remove it. Blocks.

        Args:
            name: of put().
            at_most: bytes.

        Returns:
            the capsule, or None if it is not there any more.

        Raises:
            CapsuleStoreError: the store does not answer.
        """

        def read() -> bytes | None:
            data = self._files.read(_continuation(name), at_most)
            return data if data is not None and self._files.remove(_continuation(name)) else None

        taken = self._in_time(read, _DEADLINE_SECONDS, "restored")
        if not taken.is_done:
            raise CapsuleStoreError
        return taken.value

    def give_back(self, name: str, data: bytes) -> None:
        """Write a capsule again that take() has removed. Blocks."""
        self._in_time(lambda: self._files.write(_continuation(name), data), _DEADLINE_SECONDS, "given back")

    def _in_time(self, work: Callable[[], _Value | None], seconds: float, done: str) -> _Outcome[_Value]:
        """Work with the store in a thread of its own, which is left behind at the deadline: a file may never answer."""
        if time.monotonic() < self._rests_until or not self._free.acquire(blocking=False):
            return _Outcome(is_done=False)
        result: Future[_Value | None] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                result.set_exception(error)
            finally:
                self._free.release()

        threading.Thread(target=run, name="qwonnx-capsules", daemon=True).start()
        try:
            return _Outcome(is_done=True, value=result.result(seconds))
        except EngineClosedError:
            raise
        except TimeoutError:
            if seconds < min(
                _PATIENCE_SECONDS, _DEADLINE_SECONDS
            ):  # the caller had little time, which says nothing about the store
                logger.warning("a capsule was not %s in %.1f s, which were left", done, seconds)
                return _Outcome(is_done=False)
            self._rests_until = time.monotonic() + _PAUSE_SECONDS
            message = "a capsule was not %s in %g s: the store is left alone for %g s"
            logger.warning(message, done, seconds, _PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - a file system may raise anything; its text may contain credentials
            logger.warning("a capsule was not %s (%s)", done, type(error).__name__)
        return _Outcome(is_done=False)

    def _restore_longest(self, engine: Engine, prompt: Prompt, owner: str) -> None:
        kept = engine.kept_tokens(prompt.token_ids[:-1], owner=owner)
        for position in _candidates(prompt.turn_ends):
            if position <= kept:
                return
            if self._restore(engine, prompt.token_ids[:position], owner):
                return

    def _restore(self, engine: Engine, token_ids: Sequence[int], owner: str) -> bool:
        name = _name(engine, token_ids, owner)
        if self._is_set_aside(engine, token_ids, owner):
            return False
        started = time.perf_counter()
        try:
            data = self._files.read(name, max_capsule_bytes(engine.artifact.decoder.states, len(token_ids)))
            restored = 0 if data is None else engine.load_capsule(data, owner=owner)
        except CapsuleError as error:
            logger.warning("%s; it is set aside", error)
            self._files.set_aside(name)  # save() writes it again after this answer
            return False
        if restored:
            logger.info("restored %d tokens from a capsule in %.3f s", restored, time.perf_counter() - started)
        return restored > 0

    def _save_ends(self, engine: Engine, prompt: Prompt, owner: str) -> None:
        for position in prompt.snapshot_at:
            token_ids = prompt.token_ids[:position]
            self._is_set_aside(engine, token_ids, owner)
            name = _name(engine, token_ids, owner)
            is_kept = engine.kept_tokens(token_ids, owner=owner) == position
            if not is_kept or engine.is_baked(token_ids) or self._files.exists(name):
                continue
            data = engine.save_capsule(token_ids, compress=self._compress, owner=owner)
            if data is not None:
                self._files.write(name, data)

    def _is_set_aside(self, engine: Engine, token_ids: Sequence[int], owner: str) -> bool:
        """Set a capsule aside with which a prompt has failed; whether it is one."""
        if not engine.is_broken(token_ids, owner=owner):
            return False
        logger.warning("a prompt failed after a capsule of %d tokens; it is set aside", len(token_ids))
        self._files.set_aside(_name(engine, token_ids, owner))
        return True


def _name(engine: Engine, token_ids: Sequence[int], owner: str) -> str:
    return f"{beginning_name(engine.artifact.id, token_ids, owner)}.capsule"


def _continuation(name: str) -> str:
    return f"{name}.continuation"


def _candidates(turn_ends: Sequence[int]) -> Iterator[int]:
    """The ends of the last turns, longest first, and that of the first turn, which other chats may share."""
    last = turn_ends[::-1][:_LOOKS]
    yield from last
    if turn_ends and turn_ends[0] not in last:
        yield turn_ends[0]
