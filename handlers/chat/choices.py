"""Several answers to one prompt, whose parts come as they come, each with the number of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

from msgspec import Struct

from qwonnx.handlers.chat.answer import Answer
from qwonnx.handlers.chat.parts import End, Part

MAX_CHOICES = 8  # answers to one prompt


class Numbered(Struct, frozen=True):
    """A part of one of several answers."""

    index: int
    part: Part


class Choices:
    """Answers in progress; as an asynchronous context manager it aborts unfinished generations.

    Args:
        answers: that were begun.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = tuple(answers)
        self._stack = AsyncExitStack()
        self._parts = self._read()

    @property
    def parts(self) -> AsyncGenerator[Numbered, None]:
        """The parts of all answers; the last of each is an End. Always the same generator.

        Raises:
            ServiceError: one of the answers failed: see Answer.parts.
        """
        return self._parts

    @property
    def saving(self) -> Callable[[], None] | None:
        """See Answer.saving: the prompt is the same, so one answer writes what there is."""
        return self._answers[0].saving

    async def begun(self) -> None:
        """See Answer.begun()."""
        for answer in self._answers:
            await answer.begun()

    async def _read(self) -> AsyncGenerator[Numbered, None]:
        ready: asyncio.Queue[Numbered | Exception] = asyncio.Queue()

        async def read(index: int, answer: Answer) -> None:
            try:
                async for part in answer.parts:
                    ready.put_nowait(Numbered(index, part))
            except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
                ready.put_nowait(error)

        readers = [asyncio.ensure_future(read(*each)) for each in enumerate(self._answers)]
        try:
            num_open = len(readers)
            while num_open:
                numbered = await ready.get()
                if isinstance(numbered, Exception):
                    raise numbered
                num_open -= isinstance(numbered.part, End)
                yield numbered
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def __aenter__(self) -> Choices:
        for answer in self._answers:
            await self._stack.enter_async_context(answer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._parts.aclose()
        await self._stack.__aexit__(kind, error, traceback)


async def begin_all(beginnings: Sequence[Callable[[], Awaitable[Answer]]], *, prompt_is_shared: bool) -> Choices:
    """Begin several answers. If one cannot begin, none does.

    Args:
        beginnings: of each.
        prompt_is_shared: the others begin when the first has read the prompt, and find its state.

    Raises:
        ServiceError: see begin().
    """
    async with AsyncExitStack() as begun:
        answers: list[Answer] = []
        for begin in beginnings:
            answers.append(await begun.enter_async_context(await begin()))
            if prompt_is_shared and len(answers) == 1:
                await answers[0].begun()
        begun.pop_all()
    return Choices(answers)
