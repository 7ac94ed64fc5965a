"""Decode, check and translate a text completion request; an error is a 400 that names the parameter at fault."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat.bounds import check_stops
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.handlers.chat.validation import decoded
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.openai import answer_guide, engine_request
from qwonnx.handlers.openai.generation_fields import check_stream_options
from qwonnx.handlers.openai.text_protocol import MAX_PROMPTS, TextCompletionRequest, TokenIds

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def parse(body: bytes | bytearray) -> TextCompletionRequest:
    """Decode and check a body.

    Raises:
        ServiceError: 400, with the parameter at fault.
    """
    request = decoded(body, msgspec.json.Decoder(TextCompletionRequest).decode, remedy="shorten the prompt")
    if request.suffix:
        message = "suffix is not supported: put the text before and after the gap into a chat"
        raise errors.invalid(message, "suffix", "unsupported_parameter")
    if request.best_of is not None and request.best_of != (request.n or 1):
        message = "best_of is not supported beyond n: ask for n answers, and choose by their logprobs"
        raise errors.invalid(message, "best_of", "unsupported_parameter")
    if request.echo and request.logprobs is not None:
        message = "echo with logprobs is not supported: the prompt's tokens have no logprobs here"
        raise errors.invalid(message, "echo", "unsupported_parameter")
    check_stream_options(request.stream_options, is_stream=bool(request.stream))
    check_stops([request.stop] if isinstance(request.stop, str) else request.stop or [], "stop")
    return request


def prompts(request: TextCompletionRequest) -> list[str | Sequence[int]]:
    """The prompts, at least one.

    Raises:
        ServiceError: 400, a prompt is neither a text nor tokens, or there are too many.
    """
    given = request.prompt
    if isinstance(given, str):
        return [given]
    if not given:
        raise errors.invalid("prompt is empty: send a text, tokens, or a list of either", "prompt")
    if isinstance(given[0], int):
        return [_tokens(given, "prompt")]
    if len(given) > MAX_PROMPTS:
        message = f"prompt has {len(given)} prompts: at most {MAX_PROMPTS} fit"
        raise errors.invalid(message, "prompt", "array_above_max_length")
    found: list[str | Sequence[int]] = []
    for index, each in enumerate(given):
        found.append(each if isinstance(each, str) else _tokens(each, f"prompt[{index}]"))
    return found


def neutral(request: TextCompletionRequest, given: Sequence[str | Sequence[int]]) -> list[TextRequest]:
    """A request for each answer: those of the first prompt, then those of the second, and so on.

    Args:
        request: checked.
        given: its prompts.
    """
    sampling = engine_request.sampling(request)
    sampling["max_tokens"] = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    sampling["logprobs"] = request.logprobs
    asked = request.structured_outputs
    guide = None if asked is None else partial(answer_guide.of_structured_outputs, asked)
    return [
        answer
        for prompt in given
        for answer in engine_request.choices(TextRequest(prompt, sampling, guide), request.n or 1)
    ]


def no_embeddings() -> ServiceError:
    """The answer to requests for embeddings."""
    message = "this server has no embeddings: Qwen 3.5 generates text; use a server with an embedding model"
    return ServiceError(ErrorKind.NOT_FOUND, 404, message, code="embeddings_not_supported")


def _tokens(value: object, param: str) -> list[int]:
    try:
        return msgspec.convert(value, TokenIds)
    except msgspec.ValidationError as error:
        raise errors.invalid(f"{param} is neither a text nor a list of token ids", param, "invalid_value") from error
