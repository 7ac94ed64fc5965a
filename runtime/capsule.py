"""Capsules: the state of a sequence as one blob of bytes, so that another process goes on where this one stopped.

    magic         8 bytes     "QWCAPSUL"
    version       uint32
    num_tokens    uint32
    artifact      32 bytes    the id of the artifact whose states these are
    token ids     int32 [num_tokens]
    states        in the manifest's order, C order: keys and values [num_key_value_heads, num_tokens, width], the others
                  as they are
    digest        32 bytes    sha256 of all before it; in hexadecimal the capsule's name

Numbers are little-endian. The size follows from the manifest and the number of tokens, so it is known before anything
is written, and checked before anything is read. A digest shows damage, not malice: who can write capsules decides what
the model believes it has read, so take them only from where you put them.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwonnx.export.artifact import StateSpec
from qwonnx.runtime.cache import RowSegment, StateArray
from qwonnx.runtime.errors import CapsuleError

VERSION = 1

_MAGIC = b"QWCAPSUL"
_HEAD = struct.Struct("<8sII32s")
_DIGEST_BYTES = 32
_TOKEN_BYTES = 4

assert sys.byteorder == "little", "states are written as they lie in memory"


@dataclass(frozen=True, slots=True)
class Capsule:
    """A beginning of a sequence: its tokens, and what a row holds after them."""

    token_ids: tuple[int, ...]
    segment: RowSegment


def capsule_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    """Size of a capsule of so many tokens, in bytes."""
    arrays = sum(math.prod(shape) * np.dtype(spec.dtype).itemsize for spec, shape in _shapes(states, num_tokens))
    return _HEAD.size + _TOKEN_BYTES * num_tokens + arrays + _DIGEST_BYTES


def capsule_name(data: bytes) -> str:
    """What a capsule is called: equal names mean equal capsules."""
    return data[-_DIGEST_BYTES:].hex()


def encode(
    artifact_id: str, states: Sequence[StateSpec], token_ids: Sequence[int], segments: Sequence[RowSegment]
) -> bytes:
    """Write a capsule.

    Args:
        artifact_id: of the artifact, 64 hexadecimal digits.
        states: the manifest's.
        token_ids: all of them.
        segments: what a row holds after them, one segment after the other.
    """
    parts = [
        _HEAD.pack(_MAGIC, VERSION, len(token_ids), bytes.fromhex(artifact_id)),
        np.asarray(token_ids, np.int32).tobytes(),
    ]
    for spec, _ in _shapes(states, len(token_ids)):
        if spec.kind in ("key", "value"):
            pieces = [segment.keys_and_values[spec.past] for segment in segments]
            parts.append(np.concatenate(pieces, axis=1).tobytes())
        else:
            parts.append(segments[-1].states[spec.past].tobytes())
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join((*parts, digest.digest()))


def decode(data: bytes, artifact_id: str, states: Sequence[StateSpec], max_tokens: int) -> Capsule:
    """Read a capsule; its arrays share memory with the data.

    Args:
        data: what `encode` gave.
        artifact_id, states: of the artifact that is to go on with it.
        max_tokens: it may have.

    Raises:
        CapsuleError: it is damaged, of another artifact or version, or too long.
    """
    if len(data) < _HEAD.size + _DIGEST_BYTES or data[: len(_MAGIC)] != _MAGIC:
        raise CapsuleError("this is no capsule, or only its beginning: write it again")
    _, version, num_tokens, artifact = _HEAD.unpack_from(data)
    if version != VERSION:
        raise CapsuleError(f"the capsule has version {version} and {VERSION} is read: write it again")
    if artifact.hex() != artifact_id:
        raise CapsuleError("the capsule is of another artifact: read the conversation again")
    if not 0 < num_tokens <= max_tokens:
        raise CapsuleError(f"the capsule has {num_tokens} tokens and at most {max_tokens} fit: raise max_model_len")
    if len(data) != capsule_bytes(states, num_tokens):
        raise CapsuleError("the capsule has not the size that its tokens need: write it again")
    if hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise CapsuleError("the capsule was damaged, for its sha256 is another: write it again")
    token_ids = np.frombuffer(data, np.int32, num_tokens, _HEAD.size)
    offset = _HEAD.size + token_ids.nbytes
    keys_and_values: dict[str, StateArray] = {}
    others: dict[str, StateArray] = {}
    for spec, shape in _shapes(states, num_tokens):
        array = np.frombuffer(data, np.dtype(spec.dtype), math.prod(shape), offset).reshape(shape)
        (keys_and_values if spec.kind in ("key", "value") else others)[spec.past] = array
        offset += array.nbytes
    return Capsule(tuple(token_ids.tolist()), RowSegment(num_tokens, keys_and_values, others))


def _shapes(states: Sequence[StateSpec], num_tokens: int) -> list[tuple[StateSpec, tuple[int, ...]]]:
    """Each state with its shape for one sequence of so many tokens."""
    sizes = {"max_model_len": num_tokens}
    return [(spec, tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape[1:])) for spec in states]
