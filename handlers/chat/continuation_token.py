"""Tokens with which a client continues an answer: what they say, signed, so that any instance can believe it.

    base64url( MessagePack array of the fields | HMAC-SHA256 )

A token holds no text. It names a capsule in the store, and says of which answer that is: the artifact, the API key, the
request, the last token, and until when. Only its signature is secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

MAX_CHARACTERS = 1024
_MAC_BYTES = 32
_PURPOSE = b"qwonnx continuation 1"


class Continuation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The content of a token.

    name: of the capsule, 32 hexadecimal digits.
    expires: seconds since 1970.
    artifact: id of the artifact.
    key: digest of the API key's name and owner.
    request: digest of the prompt and of everything else that the answer follows from.
    capsule: digest of the capsule, its last 32 bytes.
    num_tokens: of the capsule.
    last_token: of the answer so far; the capsule has the others, after the prompt's.
    """

    name: str
    expires: int
    artifact: str
    key: bytes
    request: bytes
    capsule: bytes
    num_tokens: int
    last_token: int


class ContinuationSigner:
    """Writes and reads tokens.

    Args:
        secret: the same in all instances.
    """

    def __init__(self, secret: str) -> None:
        self._key = hmac.digest(secret.encode(), _PURPOSE, "sha256")

    def token(self, continuation: Continuation) -> str:
        """The token, of characters that URLs and JSON take as they are."""
        content = msgspec.msgpack.encode(continuation)
        return base64.urlsafe_b64encode(content + self._mac(content)).rstrip(b"=").decode()

    def read(self, token: str) -> Continuation | None:
        """What a token says; None if it was not signed with this secret."""
        if not 0 < len(token) <= MAX_CHARACTERS:
            return None
        try:
            signed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        content, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(content)) or token != self._written(signed):
            return None
        try:
            return msgspec.msgpack.decode(content, type=Continuation)
        except msgspec.MsgspecError:  # of another version
            return None

    def _written(self, signed: bytes) -> str:
        """The one way to write a token: base64 has several, whose last bits differ."""
        return base64.urlsafe_b64encode(signed).rstrip(b"=").decode()

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")


def digest(*parts: bytes) -> bytes:
    """32 bytes that stand for these parts in this order."""
    made = hashlib.sha256()
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()
