"""POST /v1/completions: the model continues texts, or tokens, without a chat template.

body -> text_request -> chat/endpoint -> numbered parts -> text_completion
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.chat.endpoint import answering_model, respond_with_choices
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.openai import text_request
from qwonnx.handlers.openai.text_writer import TextWriter


async def create_completion(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        asked = await read_with(text_request.parse, data)
    prompts = text_request.prompts(asked)
    engine = await engine_for(request)
    writer = TextWriter(asked, prompts, answering_model(request, asked.model), host.fingerprint, engine.tokenizer)
    return await respond_with_choices(
        request,
        engine,
        text_request.neutral(asked, prompts),
        writer,
        stream=bool(asked.stream),
        prompt_is_shared=len(prompts) == 1,
    )


async def create_embeddings(request: Request) -> Response:
    """There are none.

    Raises:
        ServiceError: 404, always.
    """
    raise text_request.no_embeddings()
