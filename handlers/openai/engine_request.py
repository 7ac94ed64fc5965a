"""Translate a checked chat completion request to a neutral one, and parameters of errors back to the client's names."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.sampling_fields import sampling_of
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.openai import answer_guide, chat_request
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.handlers.openai.generation_fields import GenerationFields
from qwonnx.runtime.sampling.parameter import Api

_Request = TypeVar("_Request", ChatRequest, TextRequest)


def neutral(request: ChatCompletionRequest) -> ChatRequest:
    """The request as a ChatRequest.

    Args:
        request: checked.
    """
    return ChatRequest(
        messages=chat_request.template_messages(request.messages),
        tools=chat_request.offered_tools(request),
        sampling={
            **sampling(request),
            "logprobs": (request.top_logprobs or 0) if request.logprobs else None,
            "max_tokens": request.max_tokens if request.max_tokens is not None else request.max_completion_tokens,
        },
        guide=partial(answer_guide.of_request, request) if answer_guide.may_have_form(request) else None,
        thinking=chat_request.thinking(request),
        effort=request.reasoning_effort,
        thinking_budget=request.thinking_budget,
        preserve_thinking=chat_request.switch(request, "preserve_thinking"),
        number_pictures=chat_request.switch(request, "add_vision_id"),
        continue_final=bool(request.continue_final_message),
        one_call=request.parallel_tool_calls is False,
        continuation=request.continuation,
    )


def choices(request: _Request, number: int) -> list[_Request]:
    """Requests for so many answers. If the request has a seed, their seeds follow it."""
    seed = request.sampling.get("seed")
    if seed is None:
        return [request] * number
    return [replace(request, sampling={**request.sampling, "seed": _after(seed, index)}) for index in range(number)]


def _after(seed: int, index: int) -> int:
    """A seed after this one, which has 64 bits too."""
    return (seed + index + (1 << 63)) % (1 << 64) - (1 << 63)


def in_openai_words(error: ServiceError) -> ServiceError:
    """The same error, with the client's name of the parameter instead of the engine's."""
    return error.renamed("messages") if error.parameter == "prompt" else error


def sampling(request: GenerationFields) -> dict[str, Any]:
    """Fields of SamplingParams that both kinds of requests set."""
    return {
        **sampling_of(request, Api.OPENAI),
        "stop": (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        "max_tokens": request.max_tokens,
    }
