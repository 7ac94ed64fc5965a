"""The tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.tokenizer import Tokenizer

# A checkpoint's own list may lack the token that ends a turn (those of 0.8B and 2B do).
_ALWAYS = ("<|im_end|>", "<|endoftext|>")


def end_token_ids(generation_config: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """The end tokens in a checkpoint's generation_config.json, and those that always end a turn of Qwen.

    Raises:
        InvalidRequestError: eos_token_id is neither an id nor a list of ids.
    """
    value = generation_config.get("eos_token_id")
    named = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in named):
        raise InvalidRequestError(f"it has eos_token_id {value!r}: give ids of tokens", "eos_token_id")
    known = (tokenizer.token_id(token) for token in _ALWAYS)
    return frozenset(named).union(token for token in known if token is not None)
