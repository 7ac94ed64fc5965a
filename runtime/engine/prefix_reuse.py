"""The prefix cache at work: what a prompt's beginning is restored from before its first chunk, and kept as on the way.

Between the snapshots, which know tokens, and the hybrid cache, which knows rows. For the engine's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from qwonnx.runtime.cache.buffers import Segment
from qwonnx.runtime.cache.capsule import Capsule
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.prefix_cache import TOKEN_BYTES, PrefixCache, PrefixCacheAccount, Snapshot
from qwonnx.runtime.engine.generation import Generation

# Tokens between snapshots of a long prompt: what is read again, at most, of one that begins alike.
SNAPSHOT_INTERVAL = 2048


class PrefixReuse:
    """One engine's snapshots.

    Args:
        cache: whose rows are copied and restored.
        max_bytes: of snapshots; 0 keeps none.
    """

    def __init__(self, cache: HybridCache, max_bytes: int) -> None:
        self._cache = cache
        self._snapshots = PrefixCache(max_bytes)

    def boundaries(self, prompt: Sequence[int], snapshot_at: Sequence[int]) -> tuple[int, ...]:
        """Where the state of a prompt is kept: where it was asked for, and at intervals."""
        if not self._snapshots.max_bytes:
            return ()
        positions = {*snapshot_at, *range(SNAPSHOT_INTERVAL, len(prompt), SNAPSHOT_INTERVAL)}
        return tuple(sorted(position for position in positions if 0 < position < len(prompt)))

    def begin(self, generation: Generation, row: int) -> int:
        """Before a sequence's first chunk: restore as many of its tokens as a snapshot has, and say how many."""
        found = self._snapshots.find(generation.sequence.token_ids)
        if found is None:
            return 0
        self._cache.restore(row, [node.segment for node in found.chain()])
        self._came_by(generation, found)
        return found.position

    def keep(self, generation: Generation, row: int, position: int) -> None:
        """Keep the state of the row of a sequence, which has computed so many tokens, if there is room for it."""
        last = generation.snapshot
        start = 0 if last is None else last.position
        if position == start:
            return
        tokens = generation.sequence.token_ids[start:position]
        node = self._store(last, tokens, lambda: self._cache.copy_out(row, start))
        if node is not None:
            self._came_by(generation, node)

    def release(self, generation: Generation) -> None:
        """The sequence has ended: what it came by may go."""
        self._came_by(generation, None)

    def kept_tokens(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens need not be computed again."""
        found = self._snapshots.longest(token_ids, len(token_ids))
        return 0 if found is None else found.position

    def is_permanent(self, token_ids: Sequence[int]) -> bool:
        """Whether exactly these tokens are kept for good."""
        found = self._snapshots.longest(token_ids, len(token_ids))
        return found is not None and found.is_permanent and found.position == len(token_ids)

    def kept_segments(self, token_ids: Sequence[int]) -> list[Segment]:
        """What a row holds after the longest kept beginning of these tokens, one segment after the other."""
        found = self._snapshots.longest(token_ids, len(token_ids))
        return [] if found is None else [node.segment for node in found.chain()]

    def take_up(self, capsule: Capsule) -> int:
        """Keep what a capsule has; returns its number of tokens, 0 if there is no room for it."""
        kept = self._store(None, capsule.token_ids, lambda: self._segment_of(capsule))
        return 0 if kept is None else kept.position

    def add_permanent(self, capsule: Capsule) -> None:
        """Keep what a capsule has for good; before the first request."""
        self._snapshots.add_permanent(capsule.token_ids, self._segment_of(capsule))

    def account(self) -> PrefixCacheAccount:
        return self._snapshots.account()

    def violations(self, generations: Iterable[Generation]) -> list[str]:
        """What is wrong with the accounts, for tests; `generations` are all that have not ended."""
        held, pins = sum(each.snapshot is not None for each in generations), self.account().num_pins
        wrong = [f"{held} sequences came by a snapshot, and {pins} pins are held"] if held != pins else []
        return self._snapshots.violations() + wrong

    def _segment_of(self, capsule: Capsule) -> Segment:
        return self._cache.buffers.from_host(len(capsule.token_ids), capsule.parts)

    def _store(
        self, parent: Snapshot | None, tokens: Sequence[int], make_segment: Callable[[], Segment]
    ) -> Snapshot | None:
        """The snapshot of these tokens after the parent, made if there is room for it: segments are large."""
        node = self._snapshots.known(parent, tokens)
        num_bytes = self._cache.segment_bytes(len(tokens)) + TOKEN_BYTES * len(tokens)
        if node is None and self._snapshots.has_room_for(num_bytes):
            node = self._snapshots.store(parent, tokens, make_segment())
        return node

    def _came_by(self, generation: Generation, node: Snapshot | None) -> None:
        """The snapshot that a sequence came by last keeps those before it."""
        if node is not None:
            self._snapshots.pin(node)
        if generation.snapshot is not None:
            self._snapshots.unpin(generation.snapshot)
        generation.snapshot = node
