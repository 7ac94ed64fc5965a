"""A text as the pieces that merging works on: normalised and cut by the `tokenizers` library, without a vocabulary.

The library gets a model that makes one token of each piece, so the offsets of the tokens are the pieces.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
from msgspec import Struct

from qwonnx.runtime.text.library_vocabulary import library_tokenizer
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame

# Characters that are normalised at once.
_PART = 1 << 16
# No normal form joins an ASCII character to what stands before it, so a text may be cut there.
_ASCII = re.compile(r"[\x00-\x7f]")
_MODEL = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}


class CutText(Struct, frozen=True):
    """A normalised text, and its pieces: bounds has the first character of each and the one after its last."""

    text: str
    bounds: array[int]


class UnknownKindError(Exception):
    """A pre-tokenizer of which it is not known that its pieces are parts of the text. The message is a phrase."""


class Pieces:
    """Cuts texts as a tokenizer.json says. Safe to use from several threads.

    Raises:
        UnknownKindError: see there.
        TokenizerError: the library refuses a part.
    """

    def __init__(self, frame: TokenizerFrame) -> None:
        parts = {"normalizer": frame.parts["normalizer"], "pre_tokenizer": cutter(frame.parts["pre_tokenizer"])}
        document = {"version": "1.0", "added_tokens": [], **parts, "model": _MODEL}
        tokenizer = library_tokenizer(msgspec.json.encode(document))
        self.normalised: Callable[[str], str] | None = None
        if tokenizer.normalizer is not None:
            self.normalised = tokenizer.normalizer.normalize_str
            tokenizer.normalizer = None  # offsets are to be those of the normalised text
        self._tokenizer = tokenizer

    def cut(self, texts: Sequence[str]) -> list[CutText]:
        """Each text in pieces. Releases the GIL for most of the time."""
        whole = [self.normalise(text) for text in texts]
        found = self._tokenizer.encode_batch(whole, add_special_tokens=False)
        return [
            CutText(text, array("I", chain.from_iterable(one.offsets))) for text, one in zip(whole, found, strict=True)
        ]

    def normalise(self, text: str) -> str:
        """A text as the normaliser makes it. Keeps the GIL for 2 ms at a time."""
        if self.normalised is None or text.isascii():  # ASCII stays as it is in every form
            return text
        parts, done = [], 0
        while done < len(text):
            cut = _ASCII.search(text, done + _PART)
            end = cut.start() if cut else len(text)
            parts.append(self.normalised(text[done:end]))
            done = end
        return "".join(parts)


def cutter(pre_tokenizer: Any) -> Mapping[str, Any]:
    """The part of a pre-tokenizer that cuts, without the one that spells bytes.

    Raises:
        UnknownKindError: see there.
    """
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers") or []
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or not all(kind in ("Split", "Digits") for kind in kinds[:-1]):
        raise UnknownKindError("its pre-tokenizer does not end in the only ByteLevel")
    spelling = steps[-1]
    if spelling.get("add_prefix_space") is not False:
        raise UnknownKindError("its pre-tokenizer puts a space first")
    if spelling.get("use_regex") is False:
        steps = steps[:-1]
    return {"type": "Sequence", "pretokenizers": steps}
