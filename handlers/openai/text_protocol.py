"""OpenAI's text completion request as types: a text, or tokens, that the model continues."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from qwonnx.handlers.openai.generation_fields import GenerationFields, TokenId

MAX_PROMPTS = 16

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class TextCompletionRequest(GenerationFields, kw_only=True):
    """The body of POST /v1/completions."""

    # A text, tokens, or a list of either. text_request.py tells them apart: msgspec has no union of two lists.
    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    # Not supported: see text_request.py.
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
