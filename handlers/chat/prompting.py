"""A chat's prompt, made beside the event loop: short ones in any thread, long ones a few at a time.

A long prompt is refused by its length before it is tokenized, and the tokenizer works without the GIL, so the loop and
the engine go on. Few at a time, because each takes a core for seconds, and memory of some 50 times its text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.machine import give_back_memory
from qwonnx.runtime.text.chat_prompt import ChatPrompt, encode_chat
from qwonnx.runtime.text.schema_types import check_size
from qwonnx.runtime.text.template_text import TemplateText
from qwonnx.runtime.text.text_prompt import Prompt, TextPrompt, encode_text

LONG_CHARACTERS = 1 << 16  # about 0.1 s of tokenizing
_AT_ONCE = 2

_LONG = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="qwonnx-long-prompt")


async def prompt_of(engine: Engine, request: ChatRequest | TextRequest) -> Prompt:
    """Render and tokenize a chat, or tokenize a text.

    Raises:
        TemplateError: the model has no template, or it refuses the conversation.
        InvalidRequestError: the prompt is too long, or the schema of a tool too large.
    """
    if isinstance(request, TextRequest):
        return await _text_prompt(engine, request.prompt)
    # Many threads that copy megabytes would keep the loop from the interpreter, so long texts are also rendered there.
    text: TemplateText | None = None
    if _num_characters(request) <= LONG_CHARACTERS:
        begun = await asyncio.to_thread(_begun, engine, request)
        if isinstance(begun, ChatPrompt):
            return begun
        text = begun
    made = await asyncio.get_running_loop().run_in_executor(_LONG, partial(_long, engine, request, text))
    if isinstance(made, InvalidRequestError):
        raise made
    return made


async def _text_prompt(engine: Engine, prompt: str | Sequence[int]) -> TextPrompt:
    if len(prompt) <= LONG_CHARACTERS or not isinstance(prompt, str):
        return await asyncio.to_thread(encode_text, engine.tokenizer, prompt, engine.max_model_len - 1)
    made = await asyncio.get_running_loop().run_in_executor(_LONG, partial(_long_text, engine, prompt))
    if isinstance(made, InvalidRequestError):
        raise made
    return made


def _long_text(engine: Engine, prompt: str) -> TextPrompt | InvalidRequestError:
    try:
        return encode_text(engine.tokenizer, prompt, engine.max_model_len - 1)
    except InvalidRequestError as error:
        return error.with_traceback(None)
    finally:
        give_back_memory()


def _begun(engine: Engine, request: ChatRequest) -> ChatPrompt | TemplateText:
    """The prompt, or its text if that is long."""
    for index, tool in enumerate(request.tools):
        check_size(tool["function"].get("parameters"), f"tools[{index}].function.parameters")
    text = request.render_text(engine)
    return text if len(text) > LONG_CHARACTERS else _encoded(engine, request, text)


def _num_characters(request: ChatRequest) -> int:
    """Characters of the messages' texts."""
    return sum(len(value) for message in request.messages for value in message.values() if isinstance(value, str))


def _long(engine: Engine, request: ChatRequest, text: TemplateText | None) -> ChatPrompt | InvalidRequestError:
    """The prompt, or why there is none. A raised error would keep the text, by its traceback."""
    try:
        begun = text or _begun(engine, request)
        return begun if isinstance(begun, ChatPrompt) else _encoded(engine, request, begun)
    except InvalidRequestError as error:
        return error.with_traceback(None)
    finally:
        del text
        give_back_memory()


def _encoded(engine: Engine, request: ChatRequest, text: TemplateText) -> ChatPrompt:
    return encode_chat(
        engine,
        text,
        request.tools,
        at_most=engine.max_model_len - 1,
        allow_special_tokens=engine.settings.allow_special_tokens,
        beginning=request.beginning,
    )
