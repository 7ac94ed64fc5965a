"""OpenAI's text completion request as types: a text, or tokens, that the model continues."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from qwonnx.handlers.openai.generation_fields import GenerationFields
from qwonnx.runtime.sampling.parameter import TokenId

MAX_PROMPTS = 16

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31}, "minItems": 1}
_LISTS = [
    _TOKENS,
    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
    {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": MAX_PROMPTS},
]


class TextCompletionRequest(GenerationFields, kw_only=True):
    """The body of POST /v1/completions."""

    # A text, tokens, or a list of either. text_request.py tells them apart: msgspec has no union of two lists.
    prompt: str | Annotated[list[Any], Meta(extra_json_schema={"anyOf": _LISTS})]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    # Not supported: see text_request.py.
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
