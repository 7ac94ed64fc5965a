"""Snapshots of sequences, found by their tokens: what a prompt that begins like an earlier one need not compute again.

A snapshot is an immutable copy, at a token position, of what a row holds: keys and values up to there, and the
convolution and recurrent states at that moment. A recurrent state cannot be cut back, so a prompt goes on only from a
position at which one was taken. Snapshots of one text form a chain: each holds the keys and values since the one
before it, so a long conversation is stored once.

Prompts are compared token by token, not by a hash: nobody can make one that is taken for another. Under the budget of
bytes the snapshot that was used longest ago goes first, unless others continue it or a running sequence came by it.
Permanent snapshots, which lie in mapped files, are found like others; they never go, and are outside the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from qwonnx.runtime.cache.buffers import Segment

TOKEN_BYTES = 4  # that an id takes beside the states


@dataclass(slots=True, eq=False)
class Snapshot:
    """One position of one text. The cache alone changes it.

    Attributes:
        parent: the snapshot before it, None at the beginning.
        tokens: ids since the parent as bytes of int32.
        position: tokens up to here, the parent's included.
        segment: the row's content since the parent, and its states here.
        children: snapshots that continue it, by their tokens.
        pins: running sequences that came by it.
        last_use: grows with every use.
        is_permanent: it never goes, and takes nothing of the budget.
    """

    parent: Snapshot | None
    tokens: bytes
    position: int
    segment: Segment
    children: dict[bytes, Snapshot] = field(default_factory=dict, repr=False)
    pins: int = 0
    last_use: int = 0
    is_permanent: bool = False

    @property
    def num_bytes(self) -> int:
        return self.segment.num_bytes + len(self.tokens)

    def chain(self) -> list[Snapshot]:
        """From the beginning to this one."""
        found: list[Snapshot] = []
        node: Snapshot | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


@dataclass(frozen=True, slots=True)
class PrefixCacheAccount:
    """What the cache holds at one moment; tokens_found is a total since it was made.

    used_bytes is what counts against max_bytes: permanent snapshots do not.
    """

    num_snapshots: int
    num_permanent: int
    num_pins: int
    used_bytes: int
    max_bytes: int
    tokens_found: int


class PrefixCache:
    """All snapshots of an engine. For one thread at a time.

    Args:
        max_bytes: of copies and tokens together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._beginnings: dict[bytes, Snapshot] = {}
        self._used_bytes = 0
        self._uses = 0
        self._tokens_found = 0

    def find(self, token_ids: Sequence[int]) -> Snapshot | None:
        """The longest snapshot of a proper beginning of these tokens, now in use; None if there is none.

        At least one token is left, whose logits are wanted.
        """
        found = self.longest(token_ids, len(token_ids) - 1)
        if found is not None:
            self._touch(found)
            self._tokens_found += found.position
        return found

    def longest(self, token_ids: Sequence[int], max_position: int) -> Snapshot | None:
        """The longest snapshot of a beginning of these tokens, up to a position; it does not count as a use."""
        within = (
            node for node in self._matching(self._beginnings, _as_bytes(token_ids), 0) if node.position <= max_position
        )
        return max(within, key=lambda node: node.position, default=None)

    def store(self, parent: Snapshot | None, token_ids: Sequence[int], segment: Segment) -> Snapshot | None:
        """Keep a copy; returns the snapshot of that position, None where the budget has no room for it.

        Args:
            parent: the snapshot that the sequence came by last; it must be pinned, so that it is still there.
            token_ids: since the parent, at least one.
            segment: what the row holds since the parent.
        """
        if (known := self.known(parent, token_ids)) is not None:
            return known
        position = (0 if parent is None else parent.position) + len(token_ids)
        node = Snapshot(parent, _as_bytes(token_ids), position, segment)
        if not self._make_room(node.num_bytes):
            return None
        self._children(parent)[node.tokens] = node
        self._used_bytes += node.num_bytes
        self._touch(node)
        return node

    def add_permanent(self, token_ids: Sequence[int], segment: Segment) -> None:
        """Keep the snapshot of a beginning for good, whatever the budget. To be called before any other is stored.

        Args:
            token_ids: from the first on, at least one.
            segment: what the row holds after them.
        """
        tokens = _as_bytes(token_ids)
        assert tokens not in self._beginnings, "this beginning is kept already"
        self._beginnings[tokens] = Snapshot(None, tokens, len(token_ids), segment, is_permanent=True)

    def known(self, parent: Snapshot | None, token_ids: Sequence[int]) -> Snapshot | None:
        """The snapshot of these tokens after the parent, now in use; None if there is none."""
        node = self._children(parent).get(_as_bytes(token_ids))
        if node is not None:
            self._touch(node)
        return node

    def has_room_for(self, num_bytes: int) -> bool:
        """Whether a snapshot of this size can be stored, if others go; asked before copies are made."""
        return num_bytes <= self.max_bytes - self._kept_bytes()

    def pin(self, node: Snapshot) -> None:
        """Keep a snapshot, and all before it, while a sequence runs that came by it."""
        node.pins += 1

    def unpin(self, node: Snapshot) -> None:
        assert node.pins > 0, "unpinned more often than pinned"
        node.pins -= 1

    def account(self) -> PrefixCacheAccount:
        nodes = list(self._all())
        return PrefixCacheAccount(
            num_snapshots=len(nodes),
            num_permanent=sum(node.is_permanent for node in nodes),
            num_pins=sum(node.pins for node in nodes),
            used_bytes=self._used_bytes,
            max_bytes=self.max_bytes,
            tokens_found=self._tokens_found,
        )

    def violations(self) -> list[str]:
        """What is wrong with the accounts, for tests; empty when all is well."""
        nodes = list(self._all())
        found = []
        if (held := sum(node.num_bytes for node in nodes if not node.is_permanent)) != self._used_bytes:
            found.append(f"snapshots hold {held} bytes and {self._used_bytes} are accounted for")
        if self._used_bytes > self.max_bytes:
            found.append(f"{self._used_bytes} bytes of snapshots exceed {self.max_bytes}")
        for node in nodes:
            before, num_tokens = 0 if node.parent is None else node.parent.position, len(node.tokens) // TOKEN_BYTES
            if not node.position - before == node.segment.num_tokens == num_tokens:
                found.append(f"a snapshot at {node.position} continues one at {before}")
        return found

    def _matching(self, children: dict[bytes, Snapshot], tokens: bytes, start: int) -> Iterator[Snapshot]:
        """All snapshots below whose tokens these are; few, so their lengths are tried in turn."""
        for length in {len(key) for key in children}:
            node = children.get(tokens[start : start + length])
            if node is not None:
                yield node
                yield from self._matching(node.children, tokens, start + length)

    def _touch(self, node: Snapshot) -> None:
        self._uses += 1
        for each in node.chain():
            each.last_use = self._uses

    def _make_room(self, num_bytes: int) -> bool:
        if not self.has_room_for(num_bytes):
            return False
        while self._used_bytes + num_bytes > self.max_bytes:
            self._drop(min(self._droppable(), key=lambda node: node.last_use))
        return True

    def _droppable(self) -> Iterator[Snapshot]:
        return (node for node in self._all() if not (node.children or node.pins or node.is_permanent))

    def _drop(self, node: Snapshot) -> None:
        del self._children(node.parent)[node.tokens]
        self._used_bytes -= node.num_bytes

    def _children(self, parent: Snapshot | None) -> dict[bytes, Snapshot]:
        return self._beginnings if parent is None else parent.children

    def _kept_bytes(self) -> int:
        """Of snapshots that cannot go and count: pinned ones and those before them."""
        kept = {each for node in self._all() if node.pins for each in node.chain() if not each.is_permanent}
        return sum(node.num_bytes for node in kept)

    def _all(self) -> Iterator[Snapshot]:
        pending = list(self._beginnings.values())
        while pending:
            node = pending.pop()
            pending += node.children.values()
            yield node


def _as_bytes(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, np.int32).tobytes()
