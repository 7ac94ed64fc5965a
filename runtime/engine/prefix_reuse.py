"""Use of the prefix cache: restore a prompt's known beginning before its first chunk, and keep states on the way.

Connects the snapshots, which know tokens, with the hybrid cache, which knows rows. For the engine's thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from qwonnx.runtime.cache.buffers import Segment
from qwonnx.runtime.cache.capsule import Capsule
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.prefix_cache import TOKEN_BYTES, PrefixCache, PrefixCacheAccount, Snapshot, as_bytes
from qwonnx.runtime.engine.generation import Generation

# Tokens between snapshots of a long prompt. A prompt that begins alike computes at most this many shared tokens again.
SNAPSHOT_INTERVAL = 2048
# Prefixes that led to a failure and are remembered, so that their capsules are not loaded again.
_MOST_BROKEN = 1024


class PrefixReuse:
    """One engine's snapshots.

    Args:
        cache: its rows are copied and restored.
        max_bytes: limit for snapshots; 0 keeps nothing.
    """

    def __init__(self, cache: HybridCache, max_bytes: int) -> None:
        self._cache = cache
        self._snapshots = PrefixCache(max_bytes)
        self._broken: OrderedDict[tuple[str, bytes], None] = OrderedDict()  # owner and tokens, the oldest first

    def boundaries(self, prompt: Sequence[int], snapshot_at: Sequence[int]) -> tuple[int, ...]:
        """Positions at which a prompt's state is kept: the requested ones, and one per interval."""
        if not self._snapshots.max_bytes:
            return ()
        positions = {*snapshot_at, *range(SNAPSHOT_INTERVAL, len(prompt), SNAPSHOT_INTERVAL)}
        return tuple(sorted(position for position in positions if 0 < position < len(prompt)))

    def begin(self, generation: Generation, row: int) -> int:
        """Restore the longest known prefix of a sequence into its row; return its number of tokens."""
        found = None
        if generation.suspect is None:
            found = self._snapshots.find(generation.sequence.token_ids, generation.sequence.owner)
        generation.restored = found
        if found is None:
            return 0
        self._cache.restore(row, [node.segment for node in found.chain()])
        self._came_by(generation, found)
        return found.position

    def keep(self, generation: Generation, row: int, position: int) -> None:
        """Keep the state of a sequence's row at this position, its number of computed tokens, if it fits."""
        last = generation.snapshot
        start = 0 if last is None else last.position
        if position == start:
            return
        tokens = generation.sequence.token_ids[start:position]
        node = self._store(last, tokens, lambda: self._cache.copy_out(row, start), generation.sequence.owner)
        if node is not None:
            self._came_by(generation, node)

    def release(self, generation: Generation) -> None:
        """Release the snapshot of a sequence that leaves its row."""
        self._came_by(generation, None)

    def suspect(self, generation: Generation) -> bool:
        """After a failure, suspect the snapshot that a sequence began with; it is read again without any.

        Returns:
            False if it began without one, or has generated tokens.
        """
        if generation.suspect is not None or generation.restored is None or generation.sequence.num_generated:
            return False
        generation.suspect = generation.restored
        return True

    def convict(self, generation: Generation) -> None:
        """A sequence succeeds without the snapshot with which it failed: set the snapshot aside."""
        node, generation.suspect = generation.suspect, None
        if node is None:
            return
        tokens = b""
        for each in node.chain():
            tokens += each.tokens
            if not each.is_permanent or each is node:
                self._broken[generation.sequence.owner, tokens] = None
        while len(self._broken) > _MOST_BROKEN:
            self._broken.popitem(last=False)
        self._snapshots.set_aside(node)

    def forget(self) -> None:
        """Drop all snapshots but permanent ones: the memory of their segments is lost. No sequence may use one."""
        self._snapshots.forget()

    def is_broken(self, token_ids: Sequence[int], owner: str) -> bool:
        """Whether a snapshot of exactly these tokens was set aside. From any thread."""
        return (owner, as_bytes(token_ids)) in self._broken

    def kept_tokens(self, token_ids: Sequence[int], owner: str) -> int:
        """Number of tokens in the owner's longest kept prefix of these tokens."""
        found = self._snapshots.longest(token_ids, len(token_ids), owner)
        return 0 if found is None else found.position

    def is_permanent(self, token_ids: Sequence[int]) -> bool:
        """Whether a permanent snapshot of exactly these tokens exists."""
        found = self._snapshots.longest(token_ids, len(token_ids), "")
        return found is not None and found.is_permanent and found.position == len(token_ids)

    def kept_segments(self, token_ids: Sequence[int], owner: str) -> list[Segment]:
        """Consecutive segments of the owner's longest kept prefix of these tokens; empty if no state is kept."""
        found = self._snapshots.longest(token_ids, len(token_ids), owner)
        return [] if found is None else [node.segment for node in found.chain()]

    def take_up(self, capsule: Capsule, owner: str) -> int:
        """Keep the state in a capsule for this owner; return its number of tokens, 0 if it does not fit."""
        kept = self._store(None, capsule.token_ids, lambda: self._segment_of(capsule), owner)
        return 0 if kept is None else kept.position

    def add_permanent(self, capsule: Capsule) -> None:
        """Keep the state in a capsule permanently. Call this before the first request."""
        self._snapshots.add_permanent(capsule.token_ids, self._segment_of(capsule))

    @property
    def used_bytes(self) -> int:
        """Bytes of kept prefixes; from any thread."""
        return self._snapshots.used_bytes

    def account(self) -> PrefixCacheAccount:
        return self._snapshots.account()

    def violations(self, generations: Iterable[Generation]) -> list[str]:
        """Errors in the accounting, for tests. `generations` are all that have not ended."""
        held, pins = sum(each.snapshot is not None for each in generations), self.account().num_pins
        wrong = [f"{held} sequences use a snapshot, and {pins} pins are held"] if held != pins else []
        return self._snapshots.violations() + wrong

    def _segment_of(self, capsule: Capsule) -> Segment:
        return self._cache.buffers.from_host(len(capsule.token_ids), capsule.parts)

    def _store(
        self, parent: Snapshot | None, tokens: Sequence[int], make_segment: Callable[[], Segment], owner: str
    ) -> Snapshot | None:
        """The snapshot of these tokens after the parent, or None. A segment is large, so it is made only if it fits."""
        node = self._snapshots.known(parent, tokens, owner)
        num_bytes = self._cache.segment_bytes(len(tokens)) + TOKEN_BYTES * len(tokens)
        if node is None and self._snapshots.has_room_for(num_bytes):
            node = self._snapshots.store(parent, tokens, make_segment(), owner)
        return node

    def _came_by(self, generation: Generation, node: Snapshot | None) -> None:
        """Pin a sequence's last snapshot instead of the one before. It keeps its chain."""
        if node is not None:
            self._snapshots.pin(node)
        if generation.snapshot is not None:
            self._snapshots.unpin(generation.snapshot)
        generation.snapshot = node
