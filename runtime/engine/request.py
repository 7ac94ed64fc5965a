"""Outputs of the engine: deltas of an answer. The last one says why the answer ended."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from qwonnx.runtime.sampling.scores import SampledLogprobs


class FinishReason(Enum):
    """Why an answer ended. Every accepted request ends with exactly one."""

    STOP = "stop"  # the model's end token, a stop token or a stop string
    LENGTH = "length"  # max_tokens or max_model_len
    DEADLINE = "deadline"  # the deadline passed
    ABORT = "abort"  # the caller aborted, or the engine was closed
    ERROR = "error"  # a step failed; RequestOutput.error says how
    GUIDE = "guide"  # the guide cannot continue: it is too complex; RequestOutput.error says why


class RequestOutput(Struct, frozen=True):
    """One delta of one answer.

    text: whole characters that continue the earlier deltas. Often empty: text that may become part of a character or of
        a stop string is held back.
    token_ids: tokens since the last delta, including the end token, which has no text.
    finish_reason: None except in the request's last output.
    num_prompt_tokens, num_generated_tokens: totals so far.
    num_cached_tokens: tokens of the prompt whose states were reused instead of computed.
    error: one line, with FinishReason.ERROR and FinishReason.GUIDE only.
    logprobs: of the token, if the request asks for them and the model chose it; an end token has none.
    stop_string: the one that ended the answer, with FinishReason.STOP only.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int
    error: str | None = None
    stop_string: str | None = None
    logprobs: SampledLogprobs | None = None
