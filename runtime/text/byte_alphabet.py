"""The alphabet in which a byte-level BPE spells its tokens: a character for each byte.

Printable Latin-1 stands for itself, every other byte for a character from U+0100 on.
"""

from __future__ import annotations


def _characters() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


CHARACTERS = _characters()  # by byte
BYTE_OF_CODE = {ord(character): byte for byte, character in enumerate(CHARACTERS)}


def spelt_bytes(name: str) -> bytes | None:
    """The bytes that a token's name spells; None if a character of it is outside of the alphabet."""
    try:
        return bytes([BYTE_OF_CODE[ord(character)] for character in name])
    except KeyError:
        return None


def token_bytes(name: str) -> bytes:
    """The bytes of a token. An added token is plain text: with a character outside of the alphabet, it is that text."""
    spelt = spelt_bytes(name)
    return name.encode() if spelt is None else spelt


def name_of(token: bytes) -> str:
    """The name that spells these bytes."""
    return "".join([CHARACTERS[byte] for byte in token])
