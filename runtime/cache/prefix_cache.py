"""Snapshots of sequences, found by their tokens, so that a prompt need not compute a known beginning again.

A snapshot is an immutable copy of a row's content at a token position: keys and values up to there, and the convolution
and recurrent states at that moment. A recurrent state cannot be truncated, so a prompt can continue only from the
position of a snapshot. Snapshots of one text form a chain: each holds the keys and values since the one before it, so a
long conversation is stored once.

Prompts are compared token by token, not by a hash, so a prompt cannot be mistaken for another. When the byte budget is
full, the least recently used snapshot is evicted, unless other snapshots continue it or a running sequence uses it.
Permanent snapshots, in mapped files, are found like others; they are never evicted, and are outside the budget.

A snapshot belongs to the owner of the request that stored it, and only this owner's requests find it, so that the time
to an answer does not tell one owner what another one sent. Permanent snapshots belong to nobody: every request finds
them, but for those of adapters (owners.py), whose states differ.

Finding, storing and evicting take the same time however many snapshots there are: a batch leaves one for each line.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from msgspec import Struct, field

from qwonnx.runtime.cache.buffers import Segment
from qwonnx.runtime.cache.owners import adapter_of

TOKEN_BYTES = 4  # of a token id, stored with the states

_Key: TypeAlias = tuple[str | None, bytes]  # a snapshot's owner, and its tokens since its parent


def _finds(owner: str) -> tuple[str | None, ...]:
    """Whose snapshots a request of this owner finds."""
    return (owner,) if adapter_of(owner) else (owner, None)


class Branches:
    """The snapshots that continue one text, by owner and tokens."""

    def __init__(self) -> None:
        self._by_key: dict[_Key, Snapshot] = {}
        self._lengths: dict[str | None, Counter[int]] = {}  # of keys in bytes, by owner: few of an owner are different

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: _Key) -> Snapshot | None:
        return self._by_key.get(key)

    def add(self, node: Snapshot) -> None:
        assert node.key not in self._by_key, "there is a snapshot of these tokens"
        self._by_key[node.key] = node
        self._lengths.setdefault(node.owner, Counter())[len(node.tokens)] += 1

    def remove(self, node: Snapshot) -> None:
        del self._by_key[node.key]
        lengths = self._lengths[node.owner]
        lengths[len(node.tokens)] -= 1
        if not lengths[len(node.tokens)]:
            del lengths[len(node.tokens)]
            if not lengths:
                del self._lengths[node.owner]

    def matching(self, tokens: bytes, start: int, owner: str) -> list[Snapshot]:
        """Those of an owner, and permanent ones, whose tokens are at a place of these tokens."""
        keys = (
            (whose, tokens[start : start + length])
            for whose in _finds(owner)
            for length in self._lengths.get(whose, ())
        )
        return [node for node in map(self._by_key.get, keys) if node is not None]


class Snapshot(Struct, eq=False):
    """One position of one text. Only the cache changes it.

    Attributes:
        owner: whose requests find it; None: everybody's.
        parent: the snapshot before it, None at the beginning.
        tokens: ids since the parent as bytes of int32.
        position: tokens up to here, the parent's included.
        segment: the row's content since the parent, and its states here.
        num_bytes: of the segment and the tokens.
        children: snapshots that continue it.
        pins: running sequences that use it.
        is_broken: a step that used it failed. It is not found any more, and is dropped when nothing uses it.
    """

    owner: str | None
    parent: Snapshot | None
    tokens: bytes
    position: int
    segment: Segment
    num_bytes: int
    children: Branches = field(default_factory=Branches)
    pins: int = 0
    is_broken: bool = False

    @property
    def key(self) -> _Key:
        return self.owner, self.tokens

    @property
    def is_permanent(self) -> bool:
        """It is never evicted, and is outside the budget."""
        return self.owner is None

    @classmethod
    def of(cls, owner: str | None, parent: Snapshot | None, token_ids: Sequence[int], segment: Segment) -> Snapshot:
        """A snapshot after these tokens since the parent."""
        position = (0 if parent is None else parent.position) + len(token_ids)
        tokens = as_bytes(token_ids)
        return cls(owner, parent, tokens, position, segment, segment.num_bytes + len(tokens))

    def chain(self) -> list[Snapshot]:
        """The snapshots from the beginning to this one."""
        found: list[Snapshot] = []
        node: Snapshot | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


class PrefixCacheAccount(Struct, frozen=True):
    """Accounting of the cache at one moment; tokens_found is a total since its creation.

    used_bytes counts against max_bytes and does not include permanent snapshots.
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
        max_bytes: limit for copies and tokens together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._beginnings = Branches()
        self._by_use: OrderedDict[Snapshot, None] = OrderedDict()  # those in the budget, the least recently used first
        self._pinned: dict[Snapshot, None] = {}
        self._used_bytes = 0
        self._tokens_found = 0

    def find(self, token_ids: Sequence[int], owner: str) -> Snapshot | None:
        """The owner's longest snapshot that matches a proper prefix of these tokens, or None; counts as a use.

        At least one token is left to compute: the caller needs its logits.
        """
        found = self.longest(token_ids, len(token_ids) - 1, owner)
        if found is not None:
            self._touch(found)
            self._tokens_found += found.position
        return found

    def longest(self, token_ids: Sequence[int], max_position: int, owner: str) -> Snapshot | None:
        """The owner's longest snapshot up to a position that matches a prefix of these tokens, or None; not a use."""
        matching = _matching(self._beginnings, as_bytes(token_ids), 0, owner)
        within = (node for node in matching if node.position <= max_position)
        return max(within, key=lambda node: node.position, default=None)

    def store(self, parent: Snapshot | None, token_ids: Sequence[int], segment: Segment, owner: str) -> Snapshot | None:
        """Keep a copy; return its snapshot, or None if it does not fit the budget.

        Args:
            parent: the last snapshot of the sequence; it must be pinned, so that it still exists.
            token_ids: since the parent, at least one.
            segment: content of the row since the parent.
            owner: of the request.
        """
        if (known := self.known(parent, token_ids, owner)) is not None:
            return known
        node = Snapshot.of(owner, parent, token_ids, segment)
        is_in_the_way = self._children(parent).get(node.key) is not None  # a broken one that is still in use
        if is_in_the_way or (parent is not None and parent.is_broken) or not self._make_room(node.num_bytes):
            return None
        self._children(parent).add(node)
        self._used_bytes += node.num_bytes
        self._touch(node)
        return node

    def add_permanent(self, token_ids: Sequence[int], segment: Segment) -> None:
        """Keep the snapshot of a beginning permanently, outside the budget. Call this before store().

        Args:
            token_ids: from the first on, at least one.
            segment: content of the row after them.
        """
        self._beginnings.add(Snapshot.of(None, None, token_ids, segment))

    def known(self, parent: Snapshot | None, token_ids: Sequence[int], owner: str) -> Snapshot | None:
        """The owner's or a permanent snapshot of these tokens after the parent, or None; counts as a use."""
        children, tokens = self._children(parent), as_bytes(token_ids)
        for whose in _finds(owner):
            node = children.get((whose, tokens))
            if node is not None and not node.is_broken:
                self._touch(node)
                return node
        return None

    def set_aside(self, node: Snapshot) -> None:
        """Never find a snapshot again, nor those that share a part with it: a step that used it failed.

        A permanent snapshot at its beginning is set aside only if nothing else can be the cause.
        """
        chain = node.chain()
        top = next((each for each in chain if not each.is_permanent), node)
        if self._children(top.parent).get(top.key) is not top:
            return  # evicted
        sharing = [top, *_below(top)]
        for each in sharing:
            each.is_broken = True
        for each in reversed(sharing):  # those that continue others first
            if _is_droppable(each):
                self._drop(each)

    def forget(self) -> None:
        """Drop all snapshots but permanent ones. None may be pinned."""
        assert not self._pinned, "a running sequence uses a snapshot"
        permanent = [node for node in self._beginnings if node.is_permanent]
        self._beginnings = Branches()
        for node in permanent:
            node.children = Branches()
            self._beginnings.add(node)
        self._by_use.clear()
        self._used_bytes = 0

    def has_room_for(self, num_bytes: int) -> bool:
        """Whether a snapshot of this size fits after evictions. Callers ask before they make a copy."""
        return num_bytes <= self.max_bytes - self._kept_bytes()

    def pin(self, node: Snapshot) -> None:
        """Keep a snapshot, and all before it, while a running sequence uses it."""
        node.pins += 1
        self._pinned[node] = None

    def unpin(self, node: Snapshot) -> None:
        assert node.pins > 0, "unpinned more often than pinned"
        node.pins -= 1
        if not node.pins:
            del self._pinned[node]
        for each in reversed(node.chain()):
            if not (each.is_broken and _is_droppable(each)):
                break
            self._drop(each)

    @property
    def used_bytes(self) -> int:
        """Bytes of snapshots that are not permanent; from any thread."""
        return self._used_bytes

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
        """Errors in the accounting, for tests; empty if it is consistent."""
        nodes = list(self._all())
        found = []
        if (held := sum(node.num_bytes for node in nodes if not node.is_permanent)) != self._used_bytes:
            found.append(f"snapshots hold {held} bytes and {self._used_bytes} are accounted for")
        if self._used_bytes > self.max_bytes:
            found.append(f"{self._used_bytes} bytes of snapshots exceed {self.max_bytes}")
        if {node for node in nodes if not node.is_permanent} != self._by_use.keys():
            found.append(f"{len(self._by_use)} of {len(nodes)} snapshots may be evicted in their turn")
        if {node for node in nodes if node.pins} != self._pinned.keys():
            found.append(f"{len(self._pinned)} snapshots count as used by running sequences")
        for node in nodes:
            before, num_tokens = 0 if node.parent is None else node.parent.position, len(node.tokens) // TOKEN_BYTES
            if not node.position - before == node.segment.num_tokens == num_tokens:
                found.append(f"a snapshot at {node.position} continues one at {before}")
        return found

    def _touch(self, node: Snapshot) -> None:
        """A use of a snapshot, and of those before it, which are evicted after it."""
        for each in reversed(node.chain()):
            if not each.is_permanent:
                self._by_use[each] = None
                self._by_use.move_to_end(each)

    def _make_room(self, num_bytes: int) -> bool:
        if not self.has_room_for(num_bytes):
            return False
        while self._used_bytes + num_bytes > self.max_bytes:
            self._drop(next(node for node in self._by_use if _is_droppable(node)))
        return True

    def _drop(self, node: Snapshot) -> None:
        self._children(node.parent).remove(node)
        del self._by_use[node]
        self._used_bytes -= node.num_bytes

    def _children(self, parent: Snapshot | None) -> Branches:
        return self._beginnings if parent is None else parent.children

    def _kept_bytes(self) -> int:
        """Bytes in the budget that cannot be evicted: pinned snapshots and those before them."""
        kept = {each for node in self._pinned for each in node.chain() if not each.is_permanent}
        return sum(node.num_bytes for node in kept)

    def _all(self) -> Iterator[Snapshot]:
        for node in self._beginnings:
            yield node
            yield from _below(node)


def _matching(children: Branches, tokens: bytes, start: int, owner: str) -> Iterator[Snapshot]:
    """The snapshots below that match the tokens, of this owner or permanent."""
    for node in children.matching(tokens, start, owner):
        if not node.is_broken:
            yield node
            yield from _matching(node.children, tokens, start + len(node.tokens), owner)


def _below(node: Snapshot) -> Iterator[Snapshot]:
    pending = list(node.children)
    while pending:
        below = pending.pop()
        pending += below.children
        yield below


def _is_droppable(node: Snapshot) -> bool:
    """Whether no other snapshot and no running sequence needs it."""
    return not (node.children or node.pins or node.is_permanent)


def as_bytes(token_ids: Sequence[int]) -> bytes:
    """Tokens as snapshots store and compare them: int32."""
    return np.asarray(token_ids, np.int32).tobytes()
