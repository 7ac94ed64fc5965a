"""What a tokenizer needs of a vocabulary. There are two: the library's (library_vocabulary.py), which reads all of
tokenizer.json, and one that is mapped from a file (mapped_vocabulary.py). Both give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from qwonnx.runtime.text.added_tokens import AddedToken


class Tokens(Protocol):
    """The tokens of one text."""

    def __len__(self) -> int: ...

    @property
    def ids(self) -> list[int]:
        """A new list, which takes the GIL to make."""
        ...


class Vocabulary(Protocol):
    """Ordinary and added tokens. Safe to use from several threads."""

    @property
    def size(self) -> int:
        """Ordinary tokens, whose ids are usually those below it."""
        ...

    @property
    def largest_id(self) -> int:
        """Of ordinary and added tokens; may take time proportional to the vocabulary."""
        ...

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """By id."""
        ...

    @property
    def normalised(self) -> Callable[[str], str] | None:
        """The normaliser; None if texts stay as they are."""
        ...

    def encode(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """The tokens of each text. Added tokens are not looked for."""
        ...

    def token_id(self, name: str) -> int | None:
        """Id of an added token by its content, or of an ordinary token by its name in the byte-level alphabet."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token; empty for an id without a token."""
        ...

    def ordinary_tokens(self) -> list[bytes]:
        """The bytes of the ordinary tokens, of ids below `size`."""
        ...

    def tokens(self, num_tokens: int) -> list[bytes]:
        """token_bytes() of the ids below num_tokens."""
        ...
