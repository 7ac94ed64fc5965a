"""Sizes and lengths as text: 10GB, 1.5 GiB, 1 gb, 4096; 32k, 1M. The error for any other text names the option.

bytes      a whole number; or a number and one of B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of
           1024), in upper or lower case, with or without a space
tokens     a whole number, or one followed by k (1024) or M (1024 * 1024): contexts are powers of two

All options, environment variables and tables use this module for sizes. Standard library only.
"""

from __future__ import annotations

import re

from qwonnx.runtime.errors import QuantityError

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_BYTES = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kmgt]?i?b)|([0-9]{1,19})", re.IGNORECASE | re.ASCII)
_TOKENS = re.compile(r"([0-9]{1,12})([kM]?)")
_MAX_BYTES = 1 << 60  # more than any machine has, and floats are exact enough up to here
_MAX_TOKENS = 1 << 30


def parse_bytes(text: str, what: str, at_least: int = 1) -> int:
    """Bytes of "10GB", "1.5 GiB" or "4096"; an error message begins with `what`.

    Raises:
        QuantityError: malformed, less than at_least, or more than 2**60.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None or (match[2] or "b").lower() not in _UNITS:
        raise QuantityError(f"{what} is {text[:40]!r}, which is not a size: write it as in 512MB, 10GB or 10GiB")
    num_bytes = int(match[3]) if match[3] else int(float(match[1]) * _UNITS[match[2].lower()])
    if not at_least <= num_bytes <= _MAX_BYTES:
        raise QuantityError(f"{what} is {text[:40]!r}: give at least {bytes_text(at_least)} and at most 1000000TB")
    return num_bytes


def parse_tokens(text: str, what: str) -> int:
    """Tokens of "32768", "32k" or "1M".

    Raises:
        QuantityError: malformed, or not from 1 to 2**30.
    """
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        raise QuantityError(f"{what} is {text[:40]!r}, which is not a number of tokens: write it as in 4096, 32k or 1M")
    num_tokens = int(match[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20}[match[2]]
    if not 0 < num_tokens <= _MAX_TOKENS:
        raise QuantityError(f"{what} is {text[:40]!r}: give from 1 to {_MAX_TOKENS} tokens")
    return num_tokens


def parse_count(text: str, what: str, at_most: int) -> int:
    """A whole number from 1.

    Raises:
        QuantityError: not a whole number, or out of range.
    """
    number = int(text) if re.fullmatch(r"[0-9]{1,12}", text.strip()) else 0
    if not 1 <= number <= at_most:
        raise QuantityError(f"{what} is {text[:40]!r}: give a whole number from 1 to {at_most}")
    return number


def tokens_text(num_tokens: int) -> str:
    """The shortest way to write a length: 32768 -> "32k", 1048576 -> "1M", 1000 -> "1000"."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if num_tokens >= size and num_tokens % size == 0:
            return f"{num_tokens // size}{letter}"
    return str(num_tokens)


def bytes_text(num_bytes: int) -> str:
    """A size to print, in powers of 1000: 18471234567 -> "18.5 GB"."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {unit}"
