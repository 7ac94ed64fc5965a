"""Random bytes for ids and sampling, which stay different in two copies of one snapshot of a process.

A platform may copy a process with all its memory, and even the kernel's generator with it. So bytes come from the
kernel, mixed with a salt of this process and a counter. stir() changes the salt; restore hooks call it with material
that another copy does not have (handlers/restore.py). Nothing here is predictable as long as one of the sources is not.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time

_SALT_BYTES = 32
_ID_BYTES = 16

_lock = threading.Lock()
_counter = itertools.count()
_salt = os.urandom(_SALT_BYTES)


def fresh_bytes(size: int = 16) -> bytes:
    """Bytes that no other call returns, in this process or in a copy of it that was stirred.

    Args:
        size: 1 to 64.
    """
    count = next(_counter).to_bytes(8, "little")
    return hashlib.blake2b(os.urandom(size) + count, digest_size=size, key=_salt).digest()


def fresh_id() -> str:
    """128 of such bits, in hexadecimal."""
    return fresh_bytes(_ID_BYTES).hex()


def fresh_seed() -> int:
    """128 of such bits as a number: a seed."""
    return int.from_bytes(fresh_bytes(_ID_BYTES), "little")


def stir(material: bytes = b"") -> None:
    """Mix new material into the salt, with the clocks and the kernel's bytes. From any thread.

    Args:
        material: that only this copy of the process knows, such as the id of its first invocation. It need not be
            secret.
    """
    global _salt
    clocks = f"{time.time_ns()} {time.monotonic_ns()} {os.getpid()}".encode()
    digest = hashlib.blake2b(digest_size=_SALT_BYTES)
    with _lock:
        for part in (_salt, os.urandom(_SALT_BYTES), clocks, material):
            digest.update(len(part).to_bytes(8, "little") + part)
        _salt = digest.digest()
