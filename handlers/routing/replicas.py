"""The replicas: which ones answer, how much each has to do, and which one gets a request.

A known conversation goes to the replica that had its last turn. A new one goes to the first of an order that the hash
of its beginning gives (rendezvous hashing: another number of replicas moves few of them). Whichever it is, no replica
gets more than 1.25 times the mean of running requests (bounded load); the next in the order is asked instead.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from qwonnx.handlers.routing.affinity import Affinity

_LOAD = 1.25
_MOST_CONVERSATIONS = 100_000


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica listens. Its text is a URL without a path."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


@dataclass(slots=True, eq=False)
class Replica:
    """One server, as this router sees it.

    is_ready: it answered its last check. in_flight: requests that this router waits for.
    answered, failed: requests that it answered, and that it refused or lost before their first byte.
    cut: answers that it lost after their first byte.
    """

    address: Address
    is_ready: bool = False
    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    cut: int = 0

    def score(self, key: bytes) -> bytes:
        """Its place in a key's order; the largest is the first."""
        return hashlib.blake2b(key + str(self.address).encode(), digest_size=8).digest()


@dataclass(slots=True)
class Replicas:
    """All replicas, by address."""

    by_address: dict[Address, Replica] = field(default_factory=dict)
    spilled: int = 0  # requests that went elsewhere, because their replica had its share
    _conversations: OrderedDict[bytes, Address] = field(default_factory=OrderedDict)

    def update(self, addresses: Collection[Address]) -> None:
        """Take in new replicas and leave out old ones; running requests of those go on."""
        for address in addresses:
            self.by_address.setdefault(address, Replica(address))
        for address in set(self.by_address) - set(addresses):
            self.by_address.pop(address).is_ready = False

    @property
    def all(self) -> Sequence[Replica]:
        return tuple(self.by_address.values())

    @property
    def num_conversations(self) -> int:
        return len(self._conversations)

    def choose(self, affinity: Affinity, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica for a request; None if none is ready.

        Args:
            affinity: of the request.
            tried: that have failed it.
        """
        ready = [each for each in self.all if each.is_ready and each not in tried]
        if not ready:
            return None
        most = math.ceil(_LOAD * (sum(each.in_flight for each in ready) + 1) / len(ready))
        order = self._order(affinity, ready)
        chosen = next((each for each in order if each.in_flight < most), order[0])
        if chosen is not order[0]:
            self.spilled += 1
        if affinity.conversation is not None:
            self._conversations[affinity.conversation] = chosen.address
            self._conversations.move_to_end(affinity.conversation)
            if len(self._conversations) > _MOST_CONVERSATIONS:
                self._conversations.popitem(last=False)
        return chosen

    def _order(self, affinity: Affinity, ready: list[Replica]) -> list[Replica]:
        key = affinity.beginning or affinity.conversation
        if key is None:
            return sorted(ready, key=lambda each: each.in_flight)
        ordered = sorted(ready, key=lambda each: each.score(key), reverse=True)
        known = self._conversations.get(affinity.conversation) if affinity.conversation else None
        return sorted(ordered, key=lambda each: each.address != known)  # stable: the known one first
