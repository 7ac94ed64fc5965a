"""Capsules in a folder or in the cloud, so that another instance need not compute a conversation again.

A capsule's name is a hash of the artifact and the tokens, so a request determines which names to look for: those of its
own turns' ends. Clients send whole conversations as usual and do not notice capsules.

A failure of the store costs only time: the prompt is computed without a capsule.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from qwonnx.runtime.cache.capsule import beginning_name, max_capsule_bytes
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import CapsuleError, EngineClosedError, SettingsError
from qwonnx.runtime.text.chat_prompt import ChatPrompt

logger = logging.getLogger(__name__)

# Ends of turns to look up, from the last one; each takes a round trip.
_LOOKS = 4


class CapsuleStore:
    """A folder of capsules.

    Args:
        url: a path, or a URL of fsspec: s3://bucket/folder, gs://..., memory://...
        compress: write with zstd; both forms can be read.

    Raises:
        SettingsError: fsspec, its package for such a URL, or zstandard is not installed.
    """

    def __init__(self, url: str, *, compress: bool = False) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise SettingsError("capsules need fsspec: pip install 'qwonnx[capsules]'") from error
        if compress and find_spec("zstandard") is None:
            raise SettingsError("compressed capsules need zstandard: pip install 'qwonnx[capsules]'")
        self._compress = compress
        try:
            self._files, self._folder = url_to_fs(url)
        except (ImportError, ValueError) as error:  # unknown protocol, or its package is missing
            raise SettingsError(f"capsules cannot be kept there: {' '.join(str(error).split())[:200]}") from error

    def restore(self, engine: Engine, prompt: ChatPrompt) -> None:
        """Load a prompt's longest capsule, if it is longer than the prefix that the engine has kept. Blocks."""
        try:
            kept = engine.kept_tokens(prompt.token_ids[:-1])
            for position in _candidates(prompt.turn_ends):
                if position <= kept:
                    return
                if self._restore(engine, prompt.token_ids[:position]):
                    return
        except EngineClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - a file system may raise anything; its text may contain credentials
            logger.warning("a capsule was not restored (%s)", type(error).__name__)

    def save(self, engine: Engine, prompt: ChatPrompt) -> None:
        """Write capsules of the ends of a prompt's first and last turn, unless they exist. Blocks.

        Baked prefixes are not written, because the artifact has them.
        """
        try:
            for position in prompt.snapshot_at:
                token_ids = prompt.token_ids[:position]
                path = self._path(engine, token_ids)
                if engine.kept_tokens(token_ids) < position or engine.is_baked(token_ids) or self._files.exists(path):
                    continue
                data = engine.save_capsule(token_ids, compress=self._compress)
                if data is not None:
                    self._files.makedirs(self._folder, exist_ok=True)
                    self._files.pipe_file(path, data)  # size and digest reveal an incomplete file
        except EngineClosedError:
            return
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("a capsule was not saved (%s)", type(error).__name__)

    def _restore(self, engine: Engine, token_ids: Sequence[int]) -> bool:
        path = self._path(engine, token_ids)
        at_most = max_capsule_bytes(engine.artifact.decoder.states, len(token_ids))
        try:
            size = self._files.size(path)
        except FileNotFoundError:
            return False
        if size > at_most:  # before memory is allocated; load_capsule() checks the exact size
            logger.warning("a capsule has %s bytes and should have at most %s: it is removed", size, at_most)
            self._files.rm_file(path)
            return False
        started = time.perf_counter()
        try:
            restored = engine.load_capsule(self._files.cat_file(path))
        except CapsuleError as error:
            logger.warning("%s; it is removed", error)
            self._files.rm_file(path)  # save() writes it again after this answer
            return False
        logger.info("restored %d tokens from a capsule in %.3f s", restored, time.perf_counter() - started)
        return restored > 0

    def _path(self, engine: Engine, token_ids: Sequence[int]) -> str:
        return f"{self._folder.rstrip('/')}/{beginning_name(engine.artifact.id, token_ids)}.capsule"


def _candidates(turn_ends: Sequence[int]) -> Iterator[int]:
    """The ends of the last turns, longest first, and that of the first turn, which other chats may share."""
    last = turn_ends[::-1][:_LOOKS]
    yield from last
    if turn_ends and turn_ends[0] not in last:
        yield turn_ends[0]
