"""Sizes, lengths and rates as people write them: 10GB, 1.5GiB, 32k, 1M, 50GB/s. Anything else is refused by name.

bytes      a number and one of B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)
tokens     a whole number, or one followed by k (1024) or M (1024 * 1024): contexts are powers of two
rate       bytes, "/s", or the name of a machine (machines.py)
"""

from __future__ import annotations

import re

from qwonnx.export.errors import PlanError

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_BYTES = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(B|[kMGT]B|[KMGT]iB)")
_TOKENS = re.compile(r"([0-9]{1,12})([kM]?)")
_MAX_BYTES = 1 << 60  # beyond any machine, and far from where floats lose bytes that matter
_MAX_TOKENS = 1 << 30


def parse_bytes(text: str, what: str) -> int:
    """Bytes of "10GB" or "1.5GiB"; `what` opens the message of an error.

    Raises:
        PlanError: it is not such a size, or none that a machine could have.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise PlanError(f"{what} is {text[:40]!r}, which is not a size: write it as in 512MB, 10GB or 10GiB")
    num_bytes = int(float(match[1]) * _UNITS[match[2]])
    if not 0 < num_bytes <= _MAX_BYTES:
        raise PlanError(f"{what} is {text[:40]!r}: give more than nothing and at most 1000000TB")
    return num_bytes


def parse_tokens(text: str, what: str) -> int:
    """Tokens of "32768", "32k" or "1M".

    Raises:
        PlanError: it is not such a length, or none that a context could have.
    """
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        raise PlanError(f"{what} is {text[:40]!r}, which is not a number of tokens: write it as in 4096, 32k or 1M")
    num_tokens = int(match[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20}[match[2]]
    if not 0 < num_tokens <= _MAX_TOKENS:
        raise PlanError(f"{what} is {text[:40]!r}: give from 1 to {_MAX_TOKENS} tokens")
    return num_tokens


def parse_count(text: str, what: str, at_most: int) -> int:
    """A whole number from 1.

    Raises:
        PlanError: it is none, or out of range.
    """
    number = int(text) if re.fullmatch(r"[0-9]{1,12}", text.strip()) else 0
    if not 1 <= number <= at_most:
        raise PlanError(f"{what} is {text[:40]!r}: give a whole number from 1 to {at_most}")
    return number


def tokens_text(num_tokens: int) -> str:
    """The shortest way to write a length: 32768 -> "32k", 1048576 -> "1M", 1000 -> "1000"."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if num_tokens >= size and num_tokens % size == 0:
            return f"{num_tokens // size}{letter}"
    return str(num_tokens)


def bytes_text(num_bytes: int) -> str:
    """A size for people, in powers of 1000, as disks and memory are sold: 18471234567 -> "18.5 GB"."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {unit}"
