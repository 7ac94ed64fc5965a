"""POST /tokenize and POST /detokenize, with vLLM's fields: a conversation or a text as tokens, and tokens as text.

A conversation becomes exactly the prompt of POST /v1/chat/completions with these messages, tools and switches. A text
is text: special tokens that it spells are ordinary ones, unless the server allows them.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers import errors
from qwonnx.handlers.chat.prompting import prompt_of
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.validation import Strict, decoded
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.body import BodyLimits, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.openai import chat_request, engine_request
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.template_text import TemplateText, own

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
# A long text takes a core for seconds, and memory of some 50 times its size.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="qwonnx-tokenize")
_FOR_CHATS = ("tools", "chat_template_kwargs", "continue_final_message")


class TokenizeRequest(Strict):
    """The body of POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    chat_template_kwargs: Raw | UnsetType = UNSET
    continue_final_message: Raw | UnsetType = UNSET
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None  # without effect: the tokenizer adds none
    return_token_strs: bool | None = None


class TokenizeAnswer(msgspec.Struct):
    count: int
    max_model_len: int  # tokens of prompt and answer together
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """The body of POST /detokenize."""

    tokens: list[TokenId]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str


_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused. A prompt that does not fit the model is too.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        asked = await asyncio.to_thread(decoded, data, _TOKENIZE.decode, remedy="send less")
        chat = await asyncio.to_thread(_conversation, asked)
    engine = await engine_for(request)
    if asked.model is not None:
        host.check_model(asked.model)
    try:
        if chat is not None:
            token_ids = (await prompt_of(engine, chat)).token_ids
        else:
            assert isinstance(asked.prompt, str)
            loop = asyncio.get_running_loop()
            token_ids = await loop.run_in_executor(_THREADS, _tokens_of, engine, asked.prompt)
    except InvalidRequestError as error:
        refusal = errors.refused(error)
        raise refusal if chat is None else engine_request.in_openai_words(refusal) from error
    return await asyncio.to_thread(_tokenized, engine, token_ids, bool(asked.return_token_strs))


async def detokenize(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        asked = await asyncio.to_thread(decoded, data, _DETOKENIZE.decode, remedy="send less")
    engine = await engine_for(request)
    if asked.model is not None:
        host.check_model(asked.model)
    return await asyncio.to_thread(_detokenized, engine, asked.tokens)


def _conversation(asked: TokenizeRequest) -> ChatRequest | None:
    """The conversation of a request, checked as one that is to be answered; None: it has a text.

    Raises:
        ServiceError: 400.
    """
    if isinstance(asked.messages, UnsetType):
        if isinstance(asked.prompt, UnsetType):
            raise errors.invalid("prompt is missing: send a text, or messages", "prompt", "missing_required_parameter")
        given = next((name for name in _FOR_CHATS if getattr(asked, name) is not UNSET), None)
        if given is not None:
            raise errors.invalid(f"{given} needs messages: leave it out, or send messages", given)
        return None
    if not isinstance(asked.prompt, UnsetType):
        raise errors.invalid("there is a prompt and there are messages: send one of them", "prompt")
    fields: dict[str, Any] = {"model": asked.model or "any", "messages": asked.messages}
    fields.update({name: getattr(asked, name) for name in _FOR_CHATS if getattr(asked, name) is not UNSET})
    chat = engine_request.neutral(chat_request.parse(msgspec.json.encode(fields)))
    if chat.continue_final and not asked.add_generation_prompt:
        message = "continue_final_message opens the answer: leave add_generation_prompt true"
        raise errors.invalid(message, "add_generation_prompt")
    return replace(chat, opens_answer=asked.add_generation_prompt)


def _tokens_of(engine: Engine, text: str) -> list[int]:
    """
    Raises:
        InvalidRequestError: the text has more tokens than the model takes.
    """
    written = own(text) if engine.settings.allow_special_tokens else TemplateText(text)
    return engine.tokenizer.encode_chat(written, engine.max_model_len).token_ids


def _tokenized(engine: Engine, token_ids: list[int], with_texts: bool) -> Response:
    texts = [engine.tokenizer.decode([each], skip_special_tokens=False) for each in token_ids] if with_texts else None
    return _json(TokenizeAnswer(len(token_ids), engine.max_model_len, token_ids, texts))


def _detokenized(engine: Engine, token_ids: list[int]) -> Response:
    """
    Raises:
        ServiceError: 400, an id is not a token's.
    """
    known = min(engine.artifact.manifest.model.vocab_size, engine.tokenizer.num_tokens)
    for place, token_id in enumerate(token_ids):
        if token_id >= known:
            message = f"token id {token_id} is not one of the {known} tokens: send ids of this model"
            raise _of_token(message, place)
    return _json(DetokenizeAnswer(engine.tokenizer.decode(token_ids, skip_special_tokens=False)))


def _of_token(message: str, place: int) -> ServiceError:
    return errors.invalid(message, f"tokens[{place}]", "invalid_value")


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
