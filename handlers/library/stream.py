"""An answer while it comes: pieces of its text, and the whole answer at the end."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType

from qwonnx.handlers.chat import answer as chat_answer
from qwonnx.handlers.chat.parts import Part
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.library.answer import Answer, AnswerBuilder
from qwonnx.handlers.library.errors import in_python_words
from qwonnx.runtime.text.answer_events import ContentDelta


class AsyncAnswerStream:
    """Pieces of the answer's text, without the reasoning. parts() has everything.

    Leaving it, by `async with`, aclose() or because nothing refers to it any more, ends the generation.

    Args:
        begun: the answer in progress.
        builder: collects its parts.
        model: what answers, which must not close as long as the stream is read.
    """

    def __init__(self, begun: chat_answer.Answer, builder: AnswerBuilder, model: object) -> None:
        self._begun, self._builder, self._model = begun, builder, model
        self._forgotten = weakref.finalize(self, _leave, asyncio.get_running_loop(), begun)
        self._forgotten.atexit = False

    async def __aiter__(self) -> AsyncIterator[str]:
        async for part in self.parts():
            if isinstance(part, ContentDelta) and part.text:
                yield part.text

    async def parts(self) -> AsyncIterator[Part]:
        """The parts that are still to come: reasoning, text, tool calls, and the end (handlers/chat/parts.py).

        Raises:
            SessionError: the model failed.
            EngineClosedError: it was closed.
            InvalidRequestError: the form became too complex.
        """
        while (part := await self.next_part()) is not None:
            yield part

    async def next_part(self) -> Part | None:
        """The next part; None after the last one. Raises as parts()."""
        try:
            part = await anext(self._begun.parts, None)
        except ServiceError as error:
            await self.aclose()
            raise in_python_words(error) from error
        if part is None:
            await self.aclose()
        else:
            self._builder.add(part)
        return part

    async def answer(self) -> Answer:
        """The whole answer, once it has come. Raises as parts(), and AnswerError if the stream was left before."""
        async for _ in self.parts():
            pass
        return self._builder.answer()

    async def aclose(self) -> None:
        """End the generation, if it has not ended."""
        self._forgotten.detach()
        await self._begun.__aexit__(None, None, None)

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _leave(loop: asyncio.AbstractEventLoop, begun: chat_answer.Answer) -> None:
    """Nothing refers to the stream any more: end the generation on its loop, from any thread."""
    with suppress(RuntimeError):  # the loop is closed, and the engine with it
        loop.call_soon_threadsafe(lambda: loop.create_task(begun.__aexit__(None, None, None)))
