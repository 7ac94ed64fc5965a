"""Frames between an engine and a stage, and the handshake. Numbers are little-endian; there is no pickle.

    frame:  "QWST", version, kind, number of parts, and then each part with its length

    stage  -> HELLO [nonce]
    engine -> PROOF [nonce, HMAC of both nonces]
    stage  -> WELCOME [HMAC, manifest]     both ends have the same key; without a key, both keys are empty
    engine -> OPEN [rows, tokens a row, tokens a step]    stage -> DONE
    engine -> STEP, PING, FETCH, STORE                    stage -> DONE, FAILED or BROKEN

Every frame of the engine after PROOF begins with operations on rows. The receiver says how many bytes it takes. The
key proves who speaks; it does not hide what is said.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

MAX_MANIFEST_BYTES = 16 << 20
_MAGIC = b"QWST"
_VERSION = 1
_HEAD = struct.Struct("<4sBBHQ")  # magic, version, kind, parts, bytes of all parts
_LENGTH = struct.Struct("<Q")
_MAX_PARTS = 4096
_NONCE_BYTES = 32
_MAC_BYTES = 32
_HANDSHAKE_BYTES = 1024

Part: TypeAlias = bytes | bytearray | memoryview


class WireError(Exception):
    """The other end is gone, or does not speak this protocol. The message has no remedy: the caller knows the place."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    PROOF = 2
    WELCOME = 3
    OPEN = 4
    STEP = 5
    PING = 6
    FETCH = 7  # the bytes of segments
    STORE = 8  # bytes that become a segment
    DONE = 16
    FAILED = 17  # the step failed, and its rows are undefined
    BROKEN = 18  # the connection ends, for the reason in the frame


class Frames:
    """A connection as frames. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, kind: Kind, parts: Sequence[Part] = ()) -> None:
        """
        Raises:
            WireError: the other end is gone.
        """
        total = sum(len(part) for part in parts)
        pieces: list[Part] = [_HEAD.pack(_MAGIC, _VERSION, kind, len(parts), total)]
        for part in parts:
            pieces += (_LENGTH.pack(len(part)), part)
        try:
            self._connection.sendall(b"".join(pieces))
        except OSError as error:
            raise WireError(_reason(error)) from error

    def receive(self, max_bytes: int) -> tuple[Kind, list[memoryview]]:
        """A frame: its kind and its parts.

        Raises:
            WireError: the other end is gone, or the frame is malformed or has more than max_bytes.
        """
        magic, version, kind, num_parts, total = _HEAD.unpack(self._exactly(_HEAD.size))
        if magic != _MAGIC:
            raise WireError("it does not speak the protocol of stages")
        if version != _VERSION:
            raise WireError(f"it speaks version {version} of the protocol, and this is {_VERSION}")
        if num_parts > _MAX_PARTS or total > max_bytes:
            raise WireError(f"it sends {num_parts} parts with {total} bytes, and {max_bytes} are the most")
        parts = []
        for _ in range(num_parts):
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            total -= length
            if total < 0:
                raise WireError("it sends more bytes than it said")
            parts.append(self._exactly(length))
        try:
            return Kind(kind), parts
        except ValueError as error:
            raise WireError(f"it sends a frame of the unknown kind {kind}") from error

    def close(self) -> None:
        self._connection.close()

    def settimeout(self, seconds: float | None) -> None:
        """The time for one receive or send; None waits."""
        self._connection.settimeout(seconds)

    def _exactly(self, num_bytes: int) -> memoryview:
        buffer = memoryview(bytearray(num_bytes))
        filled = 0
        while filled < num_bytes:
            try:
                count = self._connection.recv_into(buffer[filled:])
            except OSError as error:
                raise WireError(_reason(error)) from error
            if count == 0:
                raise WireError("it closed the connection")
            filled += count
        return buffer


def greet(frames: Frames, key: str | None, manifest: str) -> None:
    """The stage's part of the handshake.

    Raises:
        WireError: the engine is gone, or has another key.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    frames.send(Kind.HELLO, [nonce])
    kind, parts = frames.receive(_HANDSHAKE_BYTES)
    if kind is not Kind.PROOF or [len(part) for part in parts] != [_NONCE_BYTES, _MAC_BYTES]:
        raise WireError("it does not speak the protocol of stages")
    theirs, proof = map(bytes, parts)
    if not hmac.compare_digest(proof, _mac(key, b"engine", nonce, theirs)):
        frames.send(Kind.BROKEN, [b"the keys differ: give both ends one QWONNX_STAGE_KEY"])
        raise WireError("its key is another one")
    frames.send(Kind.WELCOME, [_mac(key, b"stage", nonce, theirs), manifest.encode()])


def introduce(frames: Frames, key: str | None) -> bytes:
    """The engine's part of the handshake: returns the stage's manifest.

    Raises:
        WireError: the stage is gone, refuses, or does not know the key.
    """
    kind, parts = frames.receive(_HANDSHAKE_BYTES)
    if kind is not Kind.HELLO or [len(part) for part in parts] != [_NONCE_BYTES]:
        raise WireError("it does not speak the protocol of stages")
    nonce, own = bytes(parts[0]), secrets.token_bytes(_NONCE_BYTES)
    frames.send(Kind.PROOF, [own, _mac(key, b"engine", nonce, own)])
    kind, parts = frames.receive(MAX_MANIFEST_BYTES)
    if kind is Kind.BROKEN and parts:
        raise WireError(message_of(parts[0]))
    if kind is not Kind.WELCOME or len(parts) != 2:
        raise WireError("it does not speak the protocol of stages")
    if not hmac.compare_digest(bytes(parts[0]), _mac(key, b"stage", nonce, own)):
        raise WireError("it does not know the key: give both ends one QWONNX_STAGE_KEY")
    return bytes(parts[1])


def message_of(part: Part) -> str:
    """A peer's text as one short printable line."""
    text = bytes(part[:600]).decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _mac(key: str | None, who: bytes, stage_nonce: bytes, engine_nonce: bytes) -> bytes:
    return hmac.new((key or "").encode(), who + stage_nonce + engine_nonce, hashlib.sha256).digest()


def _reason(error: OSError) -> str:
    return "it does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
