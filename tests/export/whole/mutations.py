"""Damage to bytes and to JSON documents: by a list of values that break careless readers, and by a seed.

Everything is a pure function of its arguments, so a case that fails is found again by its name.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

Json = Any
Path = tuple[str | int, ...]

# Values that a reader may not expect. json.dumps writes them, and it accepts NaN and infinity.
ODD_VALUES: tuple[Json, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    -0.0,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    1 << 31,
    1 << 63,
    -(1 << 63),
    1 << 64,
    10**400,
    "",
    "1",
    "a\nb\x1b[31m",
    "\x00",
    "\ud800",
    "x" * 10_000,
    "../../etc/passwd",
    "[/red] [bold",
    [],
    [1, 2, 3],
    [None],
    [[[]]],
    {},
    {"a": 1},
    [[]] * 1000,
)

# Pieces of text that matter to parsers.
_TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"null", b"true", b"NaN", b"-Infinity",
    b"1e999", b"-1", b"0", b"18446744073709551616", b"9223372036854775807", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf",
    b"[" * 2000, b'{"a":' * 2000, b" " * 4096, b'"dtype":"F32",',
)  # fmt: skip


def paths(document: Json, prefix: Path = ()) -> Iterator[Path]:
    """The place of every value in a document, except the document itself."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*prefix, key))


def replaced(document: Json, place: Path, value: Json) -> Json:
    """A copy with another value in one place."""
    result = copy.deepcopy(document)
    _parent(result, place)[place[-1]] = value
    return result


def removed(document: Json, place: Path) -> Json:
    """A copy without one value."""
    result = copy.deepcopy(document)
    del _parent(result, place)[place[-1]]
    return result


def damaged_json(document: Json, rng: random.Random) -> bytes:
    """One or two values replaced, removed, repeated under another name, or swapped with each other."""
    result = copy.deepcopy(document)
    for _ in range(rng.randint(1, 2)):
        if not (places := list(paths(result))):
            break
        place = rng.choice(places)
        parent, key = _parent(result, place), place[-1]
        kind = rng.randrange(5)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(("", "extra", "\n", "x" * 300, str(key).upper(), f"{key} "))] = parent[key]
        elif kind == 2:
            other = rng.choice(places)
            parent[key] = copy.deepcopy(_parent(result, other)[other[-1]])
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return json.dumps(result).encode()


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to four bytes flipped, replaced, removed, repeated, cut off, or joined by pieces of text."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not result:
            break
        start = rng.randrange(len(result))
        end = min(len(result), start + rng.choice((1, 1, 1, 2, 8, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0:
            result[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[start] = rng.randrange(256)
        elif kind == 2:
            del result[start:end]
        elif kind == 3:
            result[start:start] = result[start:end]
        elif kind == 4:
            del result[start:]
        elif kind == 5:
            result[start:start] = rng.choice(_TOKENS)
        else:
            result[start:end] = rng.choice(_TOKENS)
    return bytes(result)


def _parent(document: Json, place: Path) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document
