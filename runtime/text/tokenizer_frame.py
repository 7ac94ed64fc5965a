"""A tokenizer.json's parts, checked: of which kinds they are, and what the library gets of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from qwonnx.runtime.artifact.strict_json import quoted
from qwonnx.runtime.errors import TokenizerError

if TYPE_CHECKING:
    from qwonnx.runtime.text.token_bounds import NormalForm

# The parts of a byte-level BPE. The library gets no other parts: some abort the process on a few bad bytes (a
# "Precompiled" normalizer allocates as much memory as a number in the file says).
_COMPONENTS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"BPE"}),
    "decoder": frozenset({"ByteLevel"}),
    "normalizer": frozenset({"Sequence", "NFC", "NFD", "NFKC", "NFKD"}),
    "pre_tokenizer": frozenset({"Sequence", "Split", "ByteLevel", "Digits"}),
    "post_processor": frozenset({"Sequence", "ByteLevel", "TemplateProcessing"}),
}
_NEEDED = ("model", "decoder")
_ABSENT = msgspec.Raw(b"null")


class _Model(msgspec.Struct):
    """The checked fields of the model. Only the library parses its vocabulary, 20 MB of text."""

    type: Any = None
    dropout: Any = None


class _Document(msgspec.Struct):
    """The parts of a tokenizer.json that the library gets, each as its text."""

    added_tokens: msgspec.Raw = _ABSENT
    normalizer: msgspec.Raw = _ABSENT
    pre_tokenizer: msgspec.Raw = _ABSENT
    post_processor: msgspec.Raw = _ABSENT
    decoder: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT


class TokenizerFrame(Struct, frozen=True):
    """A checked tokenizer.json.

    parts: normalizer, pre_tokenizer, post_processor and decoder, as JSON values; None for a missing one.
    added: the added tokens as they are listed.
    model: the model's text, of which only the type and the dropout were checked.
    """

    parts: Mapping[str, Any]
    added: tuple[Mapping[str, Any], ...]
    model: bytes

    @classmethod
    def read(cls, source: str | bytes) -> TokenizerFrame:
        """Check the text of a tokenizer.json.

        Raises:
            TokenizerError: not a tokenizer, or not a byte-level BPE.
        """
        try:
            document = msgspec.json.decode(source, type=_Document)
            model = msgspec.json.decode(document.model, type=_Model)
            parts = {name: msgspec.json.decode(getattr(document, name)) for name in _COMPONENTS if name != "model"}
            added = msgspec.json.decode(document.added_tokens, type=list[dict[str, Any]] | None) or []
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise TokenizerError(quoted(str(error))) from error
        for name, allowed in _COMPONENTS.items():
            for kind in [model.type] if name == "model" else _kinds(parts[name]):
                if not (isinstance(kind, str) and kind in allowed) and (kind is not None or name in _NEEDED):
                    raise TokenizerError(f"its {name} is of type {quoted(kind)}: a byte-level BPE does not have it")
        if model.dropout is not None:
            raise TokenizerError("its model has a dropout: its tokens would be random")
        return cls(parts, tuple(added), bytes(document.model))

    @property
    def special(self) -> frozenset[str]:
        """Contents of the added tokens that are special."""
        return frozenset(str(token.get("content")) for token in self.added if token.get("special") is True)

    @property
    def normal_form(self) -> NormalForm | None:
        """To which the normaliser brings a text; None if it is several."""
        forms = [kind for kind in _kinds(self.parts["normalizer"]) if kind not in (None, "Sequence")]
        return None if len(forms) > 1 else forms[0] if forms else ""

    def for_library(self) -> bytes:
        """The document for the library: only the allowed parts, each once.

        Truncation and padding, left in a file by a training run, are dropped: they would cut prompts short or pad them.
        """
        # The small parts are encoded again, so the library gets what was checked even if a key appears twice.
        fields = {name: msgspec.json.encode(part) for name, part in self.parts.items()}
        all_special = [{**token, "special": True} for token in self.added]
        fields |= {"added_tokens": msgspec.json.encode(all_special), "model": self.model}
        fields = {"version": b'"1.0"', "truncation": b"null", "padding": b"null", **fields}
        return b"{" + b",".join(b'"' + name.encode() + b'":' + part for name, part in fields.items()) + b"}"


def _kinds(component: Any) -> Iterator[Any]:
    """The types of a part of the tokenizer and of the parts in it; None for one that is missing."""
    pending = [component]
    while pending:
        part = pending.pop()
        if not isinstance(part, dict):
            yield part
            continue
        yield part.get("type", "")  # "" is allowed nowhere
        if part.get("type") == "Sequence":
            pending.extend(inner for value in part.values() if isinstance(value, list) for inner in value)
