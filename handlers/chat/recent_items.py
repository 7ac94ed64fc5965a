"""Items of the last answers, in memory, for clients that refer to an item instead of sending it back.

An API that has such references keeps the items of requests that allow it, for the key that asked, up to a limit of
bytes; the least recently used ones go first. Nothing is written anywhere. A client that needs an item that is gone is
told to send it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from msgspec import Struct

_ITEM_BYTES = 512  # that an item takes beside its text


class _Name(Struct, frozen=True):
    owner: str
    item_id: str


class RecentItems:
    """The items of one application. Any thread may use it.

    Args:
        max_bytes: of all items together; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._items: OrderedDict[_Name, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """That the items take."""
        return self._num_bytes

    def keep(self, owner: str, item_id: str, text: bytes) -> None:
        """Keep an item. One that is larger than the limit is not kept.

        Args:
            owner: whose item it is: see api_key.owner_of.
            item_id: that no other item has.
            text: JSON.
        """
        size = len(text) + _ITEM_BYTES
        if size > self._max_bytes:
            return
        name = _Name(owner, item_id)
        with self._lock:
            before = self._items.pop(name, None)
            if before is not None:
                self._num_bytes -= len(before) + _ITEM_BYTES
            self._items[name] = text
            self._num_bytes += size
            while self._num_bytes > self._max_bytes:
                _, gone = self._items.popitem(last=False)
                self._num_bytes -= len(gone) + _ITEM_BYTES

    def find(self, owner: str, item_id: str) -> bytes | None:
        """The JSON text of an item; None if it is not kept, or belongs to another owner."""
        name = _Name(owner, item_id)
        with self._lock:
            text = self._items.get(name)
            if text is not None:
                self._items.move_to_end(name)
            return text
