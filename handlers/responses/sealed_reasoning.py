"""encrypted_content: reasoning that a client keeps without reading it, and sends back.

    qwonnx-reasoning-1:BASE64URL(zlib(UTF-8 text))

It is not a secret: the text is the client's own. The prefix tells our form from another server's, whose reasoning
cannot be read here and is left out of the prompt.
"""

from __future__ import annotations

import base64
import binascii
import zlib

_PREFIX = "qwonnx-reasoning-1:"
_LEVEL = 1  # thoughts are long, and the event loop waits

MAX_BYTES = 4 << 20  # of one text, before it is compressed; more than any model's context holds


def sealed(text: str) -> str:
    """A reasoning's text as encrypted_content."""
    return _PREFIX + base64.urlsafe_b64encode(zlib.compress(text.encode(), _LEVEL)).decode()


def opened(content: str) -> str | None:
    """The text in an encrypted_content; None if it is not ours, or was damaged.

    A content may be far smaller than its text: at most MAX_BYTES are unpacked.
    """
    if not content.startswith(_PREFIX):
        return None
    try:
        packed = base64.b64decode(content[len(_PREFIX) :], altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, MAX_BYTES)
        return text.decode() if unpacker.eof else None
    except (binascii.Error, zlib.error, ValueError):
        return None
