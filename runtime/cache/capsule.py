"""Capsules: the state of a sequence as one blob of bytes, with which another process can continue the sequence.

    magic         8 bytes     "QWCAPSUL"
    version       uint32
    num_tokens    uint32
    compression   uint32      0: none; 1: the body is one zstd frame. Each part is in byte planes: all first bytes of
                              its numbers, then all second bytes, ... Similar exponents of floats then lie together
    reserved      12 bytes
    artifact      32 bytes    the id of the artifact that the states belong to
    body          token ids   int32 [num_tokens]
                  states      in the manifest's order, C order: keys and values
                              [num_key_value_heads, num_tokens, width], the others as they are
    digest        32 bytes    sha256 of everything before it; its hexadecimal form is the capsule's name

Numbers are little-endian. The head has 64 bytes and every part of the body is padded to a multiple of 64, so that an
uncompressed capsule can be used in place, mapped from a file. The manifest and the number of tokens determine its size,
which is checked before memory is allocated. A digest detects damage, not forgery: anyone who can write capsules can
change the model's state, so load them only from storage that you control.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from msgspec import Struct

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.host_segments import storage_dtype
from qwonnx.runtime.cache.rows import item_bytes, row_bytes
from qwonnx.runtime.errors import CapsuleError
from qwonnx.runtime.install import how_to_install

VERSION = 2

_MAGIC = b"QWCAPSUL"
_HEAD = struct.Struct("<8sIII12x32s")
_ALIGNMENT = 64  # bytes; a vector register, a cache line
_DIGEST_BYTES = 32
_TOKEN_BYTES = 4  # of a token id
_UNCOMPRESSED, _ZSTD = 0, 1
_CHECKED_AT_ONCE = 1 << 20  # numbers, whose answers take a MiB
# Higher levels take several times longer and save almost nothing: docs/capsules.md has the numbers.
_ZSTD_LEVEL = 1

assert sys.byteorder == "little", "states are written as they lie in memory"
assert _HEAD.size % _ALIGNMENT == 0


class Capsule(Struct, frozen=True):
    """The beginning of a sequence: its tokens, and the bytes of a row's states after them.

    Attributes:
        token_ids: all of them.
        parts: one per state, in the manifest's order, read-only: the parts for StateBuffers.from_host().
    """

    token_ids: tuple[int, ...]
    parts: tuple[memoryview, ...]


def capsule_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    """Size of an uncompressed capsule of num_tokens tokens, in bytes."""
    return _HEAD.size + _body_bytes(states, num_tokens) + _DIGEST_BYTES


def max_capsule_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    """Largest size of a capsule, in bytes: compression makes incompressible data slightly larger."""
    size = capsule_bytes(states, num_tokens)
    return size + size // 256 + 128


def beginning_name(artifact_id: str, token_ids: Sequence[int], owner: str = "") -> str:
    """Name of the beginning of a sequence, in hexadecimal. It does not depend on computed states.

    owner: whose it is, see Engine.submit(); nobody without the owner's secret can compute the name.
    """
    beginning = bytes.fromhex(artifact_id) + np.asarray(token_ids, np.int32).tobytes()
    if not owner:
        return hashlib.sha256(beginning).hexdigest()
    return hmac.digest(owner.encode(), beginning, "sha256").hex()


def encode(
    artifact_id: str,
    states: Sequence[StateSpec],
    token_ids: Sequence[int],
    parts: Iterable[memoryview],
    *,
    compress: bool = False,
) -> bytes:
    """Write a capsule.

    Args:
        artifact_id: of the artifact, 64 hexadecimal digits.
        states: the manifest's.
        token_ids: all of them.
        parts: a row's states after them, as StateBuffers.to_host() yields them.
        compress: with zstd.

    Raises:
        CapsuleError: compress is set and zstandard is not installed.
    """
    compression = _ZSTD if compress else _UNCOMPRESSED
    head = _HEAD.pack(_MAGIC, VERSION, len(token_ids), compression, bytes.fromhex(artifact_id))
    body = _body(states, token_ids, parts, in_planes=compress)
    pieces = (head, _compressed(b"".join(body))) if compress else (head, *body)
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return b"".join((*pieces, digest.digest()))


def decode(data: bytes | mmap.mmap, artifact_id: str, states: Sequence[StateSpec], max_tokens: int) -> Capsule:
    """Read a capsule. The parts of an uncompressed one share memory with the data.

    Args:
        data: output of `encode`.
        artifact_id, states: of the artifact that continues the sequence.
        max_tokens: limit for its tokens.

    Raises:
        CapsuleError: it is damaged, of another artifact or version, too long, or compressed and zstandard is not
            installed.
    """
    view = memoryview(data).toreadonly()
    if len(view) < _HEAD.size + _DIGEST_BYTES or view[: len(_MAGIC)] != _MAGIC:
        raise CapsuleError("this is not a capsule, or it is truncated: write it again")
    _, version, num_tokens, compression, artifact = _HEAD.unpack_from(view)
    if version != VERSION:
        raise CapsuleError(f"the capsule has version {version} instead of {VERSION}: write it again")
    if artifact.hex() != artifact_id:
        raise CapsuleError("the capsule is of another artifact: read the conversation again")
    if not 0 < num_tokens <= max_tokens:
        raise CapsuleError(f"the capsule has {num_tokens} tokens and at most {max_tokens} fit: raise max_model_len")
    if compression not in (_UNCOMPRESSED, _ZSTD):
        raise CapsuleError(f"the capsule has compression {compression}, which is unknown: write it again")
    if compression == _ZSTD:
        has_right_size = len(view) <= max_capsule_bytes(states, num_tokens)
    else:
        has_right_size = len(view) == capsule_bytes(states, num_tokens)
    if not has_right_size:
        raise CapsuleError("the size of the capsule does not match its tokens: write it again")
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise CapsuleError("the capsule was damaged (its sha256 does not match): write it again")
    body = view[_HEAD.size : -_DIGEST_BYTES]
    if compression == _ZSTD:
        body = memoryview(_decompressed(bytes(body), _body_bytes(states, num_tokens)))
    tokens, *parts = _read(body, states, num_tokens, in_planes=compression == _ZSTD)
    return Capsule(tuple(np.frombuffer(tokens, np.int32).tolist()), tuple(parts))


def is_finite(capsule: Capsule, states: Sequence[StateSpec]) -> bool:
    """Whether all its floats are finite, as those of rows must be: a graph multiplies what is beyond a row by zero."""
    numbers = [np.frombuffer(part, storage_dtype(spec)) for part, spec in zip(capsule.parts, states, strict=True)]
    return all(
        _are_finite(part[start : start + _CHECKED_AT_ONCE], spec)
        for part, spec in zip(numbers, states, strict=True)
        for start in range(0, len(part), _CHECKED_AT_ONCE)
    )


def _are_finite(numbers: np.ndarray[Any, np.dtype[Any]], spec: StateSpec) -> bool:
    if spec.dtype == "float8e4m3fn":  # it has no infinity, and one NaN with either sign
        return not bool(((numbers & 0x7F) == 0x7F).any())
    if spec.dtype == "bfloat16":  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return not np.issubdtype(numbers.dtype, np.floating) or bool(np.isfinite(numbers).all())


def _body(
    states: Sequence[StateSpec], token_ids: Sequence[int], parts: Iterable[memoryview], *, in_planes: bool
) -> Iterator[bytes | memoryview]:
    """Parts of a body in order, each followed by its padding."""
    tokens = np.asarray(token_ids, np.int32).data.cast("B")
    for part, (num_bytes, size) in zip(chain((tokens,), parts), _sizes(states, len(token_ids)), strict=True):
        assert len(part) == num_bytes, f"a part has {len(part)} bytes and should have {num_bytes}"
        yield _transposed(part, size) if in_planes else part
        yield bytes(_aligned(num_bytes) - num_bytes)


def _read(body: memoryview, states: Sequence[StateSpec], num_tokens: int, *, in_planes: bool) -> Iterator[memoryview]:
    """Parts of a body that has the right size: views, unless the bytes must be reordered."""
    offset = 0
    for num_bytes, size in _sizes(states, num_tokens):
        part = body[offset : offset + num_bytes]
        yield _transposed(part, num_bytes // size).toreadonly() if in_planes else part
        offset += _aligned(num_bytes)


def _transposed(part: memoryview, num_columns: int) -> memoryview:
    """Transpose bytes, read as rows of num_columns bytes.

    With one number per row, the result is byte planes: all first bytes, then all second bytes, ... With one plane per
    row, the result is the numbers again.
    """
    return np.ascontiguousarray(np.frombuffer(part, np.uint8).reshape(-1, num_columns).T).reshape(-1).data


def _body_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    return sum(_aligned(num_bytes) for num_bytes, _ in _sizes(states, num_tokens))


def _sizes(states: Sequence[StateSpec], num_tokens: int) -> Iterator[tuple[int, int]]:
    """Bytes of each part of a body and of one number in it: the token ids, then the states."""
    yield _TOKEN_BYTES * num_tokens, _TOKEN_BYTES
    for spec in states:
        yield row_bytes(spec, num_tokens), item_bytes(spec)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _compressed(body: bytes) -> bytes:
    """One zstd frame, with the body's size in its header."""
    try:
        import zstandard
    except ImportError as error:
        raise CapsuleError(f"compressed capsules need zstandard: {how_to_install('capsules')}") from error
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)


def _decompressed(frame: bytes, num_bytes: int) -> bytes:
    """The content of a frame, if its header gives this size; checked before memory is allocated."""
    try:
        import zstandard
    except ImportError as error:
        raise CapsuleError(f"the capsule is compressed and needs zstandard: {how_to_install('capsules')}") from error
    try:
        if zstandard.get_frame_parameters(frame).content_size != num_bytes:
            raise CapsuleError("the uncompressed size of the capsule does not match its tokens: write it again")
        body = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CapsuleError(f"the capsule cannot be decompressed ({error}): write it again") from error
    assert len(body) == num_bytes, "zstd gives what a frame's header says, or fails"
    return body
