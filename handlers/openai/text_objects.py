"""OpenAI's text completion objects as types. A chunk of a stream has the form of a whole answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from qwonnx.handlers.openai.chat_objects import CompletionUsage

FinishReasonName = Literal["stop", "length"]


class TextLogprobs(msgspec.Struct):
    """Of each token: its text, where that begins in the answer, and the likeliest ones in its place."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    text: str
    index: int
    finish_reason: FinishReasonName | None
    logprobs: TextLogprobs | None = None


class TextCompletion(msgspec.Struct):
    id: str
    created: int  # seconds since 1970
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    usage: CompletionUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"
