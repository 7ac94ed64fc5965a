"""Whose states are whose: of a client, and of an adapter that a request was answered with.

States of one adapter are wrong for another one and for the model itself. So the adapter is part of the owner's name, by
which prefixes and capsules are found.
"""

from __future__ import annotations

_MARK = "\0adapter:"  # no hash of an API key has it


def owner_with(owner: str, digest: str) -> str:
    """The owner of states that an adapter made; the same again if the name has an adapter already.

    Args:
        owner: see Engine.submit().
        digest: of the adapter; empty: none.
    """
    return owner if not digest or _MARK in owner else f"{owner}{_MARK}{digest}"


def adapter_of(owner: str) -> str:
    """The digest of the adapter that made an owner's states; empty: the model itself."""
    return owner.partition(_MARK)[2]
