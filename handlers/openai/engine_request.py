"""From a chat request to what the engine takes: token ids and sampling, and how to read the answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from qwonnx.handlers.openai import chat_request
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.chat_prompt import ChatPrompt, render_chat

if TYPE_CHECKING:  # pulls in onnxruntime
    from qwonnx.runtime.engine.engine import Engine

_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
)


def chat_prompt(engine: Engine, request: ChatCompletionRequest) -> ChatPrompt:
    """The prompt of a request.

    Raises:
        TemplateError: see render_chat.
    """
    thinking = chat_request.thinking(request)
    variables = {} if thinking is None else {"enable_thinking": thinking}
    messages = chat_request.template_messages(request.messages)
    return render_chat(engine, messages, chat_request.offered_tools(request), variables)


def sampling_params(engine: Engine, request: ChatCompletionRequest) -> SamplingParams:
    """The checkpoint's recommended sampling, changed by what the request says.

    Raises:
        InvalidRequestError: a value out of range.
    """
    given = {name: getattr(request, name) for name in _SAMPLING_FIELDS if getattr(request, name) is not None}
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return dataclasses.replace(
        engine.default_sampling,
        **given,
        stop=stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logit_bias=request.logit_bias or {},
        max_tokens=request.max_tokens if request.max_tokens is not None else request.max_completion_tokens,
    )
