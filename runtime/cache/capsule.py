"""Capsules: the state of a sequence as one blob of bytes, so that another process goes on where this one stopped.

    magic         8 bytes     "QWCAPSUL"
    version       uint32
    num_tokens    uint32
    compression   uint32      0: none; 1: the body is one frame of zstd, and of every part of it all first bytes come
                              first, then all second ones: the exponents of floats, which are alike, lie together
    reserved      12 bytes
    artifact      32 bytes    the id of the artifact whose states these are
    body          token ids   int32 [num_tokens]
                  states      in the manifest's order, C order: keys and values
                              [num_key_value_heads, num_tokens, width], the others as they are
    digest        32 bytes    sha256 of all before it; in hexadecimal the capsule's name

Numbers are little-endian. The head has 64 bytes and every part of the body is filled up to a multiple of 64, so that an
uncompressed capsule can be used where it lies, mapped from a file. Its size follows from the manifest and the number of
tokens: known before anything is written, and checked before memory is taken. A digest shows damage, not malice: who can
write capsules decides what the model believes it has read, so take them only from where you put them.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.rows import item_bytes, row_bytes
from qwonnx.runtime.errors import CapsuleError

VERSION = 2

_MAGIC = b"QWCAPSUL"
_HEAD = struct.Struct("<8sIII12x32s")
_ALIGNMENT = 64  # bytes; a vector register, a cache line
_DIGEST_BYTES = 32
_TOKEN_BYTES = 4  # an id's
_UNCOMPRESSED, _ZSTD = 0, 1
# More costs several times the time and gains next to nothing: docs/capsules.md has the numbers.
_ZSTD_LEVEL = 1

assert sys.byteorder == "little", "states are written as they lie in memory"
assert _HEAD.size % _ALIGNMENT == 0


@dataclass(frozen=True, slots=True)
class Capsule:
    """A beginning of a sequence: its tokens, and what a row holds after them, in bytes.

    Attributes:
        token_ids: all of them.
        parts: one a state, in the manifest's order, read-only: what StateBuffers.from_host() makes a segment of.
    """

    token_ids: tuple[int, ...]
    parts: tuple[memoryview, ...]


def capsule_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    """Size of an uncompressed capsule of so many tokens, in bytes."""
    return _HEAD.size + _body_bytes(states, num_tokens) + _DIGEST_BYTES


def max_capsule_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    """Size of a capsule of so many tokens at most: what cannot be compressed becomes a little larger by trying."""
    size = capsule_bytes(states, num_tokens)
    return size + size // 256 + 128


def beginning_name(artifact_id: str, token_ids: Sequence[int]) -> str:
    """What the beginning of a sequence is called, in hexadecimal: known before anything was computed."""
    return hashlib.sha256(bytes.fromhex(artifact_id) + np.asarray(token_ids, np.int32).tobytes()).hexdigest()


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
        parts: what a row holds after them, as StateBuffers.to_host() gives it.
        compress: with zstd.

    Raises:
        CapsuleError: zstandard is to compress and is not installed.
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
    """Read a capsule; unless it is compressed, its parts share memory with the data.

    Args:
        data: what `encode` gave.
        artifact_id, states: of the artifact that is to go on with it.
        max_tokens: it may have.

    Raises:
        CapsuleError: it is damaged, of another artifact or version, too long, or compressed without zstandard here.
    """
    view = memoryview(data).toreadonly()
    if len(view) < _HEAD.size + _DIGEST_BYTES or view[: len(_MAGIC)] != _MAGIC:
        raise CapsuleError("this is no capsule, or only its beginning: write it again")
    _, version, num_tokens, compression, artifact = _HEAD.unpack_from(view)
    if version != VERSION:
        raise CapsuleError(f"the capsule has version {version} and {VERSION} is read: write it again")
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
        raise CapsuleError("the capsule has not the size that its tokens need: write it again")
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise CapsuleError("the capsule was damaged, for its sha256 is another: write it again")
    body = view[_HEAD.size : -_DIGEST_BYTES]
    if compression == _ZSTD:
        body = memoryview(_decompressed(bytes(body), _body_bytes(states, num_tokens)))
    tokens, *parts = _read(body, states, num_tokens, in_planes=compression == _ZSTD)
    return Capsule(tuple(np.frombuffer(tokens, np.int32).tolist()), tuple(parts))


def _body(
    states: Sequence[StateSpec], token_ids: Sequence[int], parts: Iterable[memoryview], *, in_planes: bool
) -> Iterator[bytes | memoryview]:
    """A body's parts in their order, each filled up."""
    tokens = np.asarray(token_ids, np.int32).data.cast("B")
    for part, (num_bytes, size) in zip(chain((tokens,), parts), _sizes(states, len(token_ids)), strict=True):
        assert len(part) == num_bytes, f"a part has {len(part)} bytes and should have {num_bytes}"
        yield _transposed(part, size) if in_planes else part
        yield bytes(_aligned(num_bytes) - num_bytes)


def _read(body: memoryview, states: Sequence[StateSpec], num_tokens: int, *, in_planes: bool) -> Iterator[memoryview]:
    """The parts of a body of the right size; where they lie, unless their bytes were reordered."""
    offset = 0
    for num_bytes, size in _sizes(states, num_tokens):
        part = body[offset : offset + num_bytes]
        yield _transposed(part, num_bytes // size).toreadonly() if in_planes else part
        offset += _aligned(num_bytes)


def _transposed(part: memoryview, num_columns: int) -> memoryview:
    """Bytes as rows of so many columns, column by column.

    Of a part whose numbers are its rows these are planes: all first bytes, then all second ones. Planes as its rows are
    the numbers again.
    """
    return np.ascontiguousarray(np.frombuffer(part, np.uint8).reshape(-1, num_columns).T).reshape(-1).data


def _body_bytes(states: Sequence[StateSpec], num_tokens: int) -> int:
    return sum(_aligned(num_bytes) for num_bytes, _ in _sizes(states, num_tokens))


def _sizes(states: Sequence[StateSpec], num_tokens: int) -> Iterator[tuple[int, int]]:
    """Bytes of a body's parts, and of a number in each: token ids, then the states of a sequence of so many tokens."""
    yield _TOKEN_BYTES * num_tokens, _TOKEN_BYTES
    for spec in states:
        yield row_bytes(spec, num_tokens), item_bytes(spec)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _compressed(body: bytes) -> bytes:
    """One frame of zstd, which names the body's size."""
    try:
        import zstandard
    except ImportError as error:
        raise CapsuleError("compressed capsules need zstandard: pip install 'qwonnx[capsules]'") from error
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)


def _decompressed(frame: bytes, num_bytes: int) -> bytes:
    """What a frame holds, if that is so many bytes: its own header is asked before memory is taken."""
    try:
        import zstandard
    except ImportError as error:
        raise CapsuleError("the capsule is compressed and needs zstandard: pip install 'qwonnx[capsules]'") from error
    try:
        if zstandard.get_frame_parameters(frame).content_size != num_bytes:
            raise CapsuleError("the capsule holds another number of bytes than its tokens need: write it again")
        body = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CapsuleError(f"the capsule cannot be decompressed ({error}): write it again") from error
    assert len(body) == num_bytes, "zstd gives what a frame's header says, or fails"
    return body
