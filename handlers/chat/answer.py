"""One chat, from its request to the parts of its answer, independent of an API.

    ChatRequest -> prompt -> guide -> capsules -> engine -> outputs -> parser -> parts

begin() makes every refusal, before the first part. The caller enters the Answer that it returns; leaving the Answer,
for any reason, ends the generation within one step.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from types import TracebackType

from qwonnx.handlers import errors
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.outputs import OutputStream
from qwonnx.handlers.chat.parts import End, Part, PartReader
from qwonnx.handlers.chat.prompting import prompt_of
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError
from qwonnx.runtime.sampling.guide import Guide

logger = logging.getLogger(__name__)


async def begin(
    engine: Engine,
    request: ChatRequest,
    *,
    request_id: str | None = None,
    deadline: float | None = None,
    capsules: CapsuleStore | None = None,
    owner: str = "",
    fits: Callable[[Part], bool] | None = None,
) -> Answer:
    """Render a chat, restore its state from a capsule, and submit it.

    Args:
        engine: started.
        request: the chat.
        request_id: unique among live requests; generated if None.
        deadline: the event loop's time at which an unfinished answer ends.
        capsules: store of the states of conversations.
        owner: see Engine.submit().
        fits: called with each part in order; the answer ends with LENGTH before the first that does not fit.

    Raises:
        ServiceError: 400, 429 or 503: it is refused. Parameters have the names of ChatRequest.sampling; "messages" is
            the conversation, "prompt" the rendered one; a guide has its own names.
    """
    try:
        params = request.params(engine.default_sampling)
        prompt = await prompt_of(engine, request)
        # Schemas take tens of milliseconds; the event loop must not wait.
        guide = None if request.guide is None else await asyncio.to_thread(request.guide_of, prompt)
        if guide is not None:
            params = dataclasses.replace(params, guide=guide)
            await _compiled(engine, guide, deadline, owner)
        saving = None
        if capsules is not None:
            await asyncio.to_thread(capsules.restore, engine, prompt, owner)
            saving = partial(capsules.save, engine, prompt, owner)
        outputs = await OutputStream.submitted(
            engine,
            prompt.token_ids,
            params,
            request_id=request_id,
            snapshot_at=prompt.snapshot_at,
            deadline=deadline,
            owner=owner,
        )
    except (InvalidRequestError, QueueFullError, EngineClosedError) as error:
        raise errors.refused(error) from error
    return Answer(outputs, PartReader(prompt.parser(), one_call=request.one_call), saving, guide, fits)


async def _compiled(engine: Engine, guide: Guide, deadline: float | None, owner: str) -> None:
    """Wait until a guide is compiled. If the client leaves first or the deadline passes, nothing compiles it further.

    Raises:
        ServiceError: 504, the deadline passed.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.wrap_future(engine.compile_guide(guide, owner=owner))
    except TimeoutError:
        raise errors.out_of_time() from None


class Answer:
    """An answer in progress; as an asynchronous context manager it aborts an unfinished generation.

    Args:
        outputs: of the submitted request.
        reader: of these outputs.
        saving: see Answer.saving.
        guide: the form of the answer, or None.
        fits: see begin().
    """

    def __init__(
        self,
        outputs: OutputStream,
        reader: PartReader,
        saving: Callable[[], None] | None = None,
        guide: Guide | None = None,
        fits: Callable[[Part], bool] | None = None,
    ) -> None:
        self._outputs = outputs
        self._reader = reader
        self._saving = saving
        self._guide = guide
        self._fits = fits
        self._parts = self._read()

    @property
    def saving(self) -> Callable[[], None] | None:
        """Writes the conversation's capsules, after the answer was sent. Blocks. None: nothing to write."""
        return self._saving

    @property
    def parts(self) -> AsyncGenerator[Part, None]:
        """The parts of the answer, the last of them an End. Always the same generator; leaving the answer closes it.

        Raises:
            ServiceError: 400, the form became too complex; 500, the model failed; 503, the server stops; 504, the
                deadline passed before the first output.
        """
        return self._parts

    async def begun(self) -> None:
        """Wait for the first output.

        Raises:
            ServiceError: 504, the deadline passed before it.
        """
        await self._outputs.begun()

    async def _read(self) -> AsyncGenerator[Part, None]:
        async with aclosing(aiter(self._outputs)) as outputs:
            async for output in outputs:
                self._check_alive(output)
                for part in self._reader.read(output):
                    if not isinstance(part, End) and self._fits is not None and not self._fits(part):
                        part = self._reader.cut(output)
                    if isinstance(part, End):
                        self._outputs.abort()  # stops further output; does nothing if the model has ended
                        yield part
                        return
                    yield part

    def _check_alive(self, output: RequestOutput) -> None:
        if output.finish_reason is FinishReason.ABORT:
            raise errors.closing()  # only closing the engine aborts a request that is still being answered
        if output.finish_reason is FinishReason.GUIDE:
            param = None if self._guide is None else self._guide.param
            raise errors.invalid(f"{output.error}: send a simpler form", param, "invalid_guide")
        if output.finish_reason is FinishReason.ERROR:
            logger.error("request %s failed: %s", output.request_id, output.error)
            raise errors.internal()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._outputs.abort()
        await self._parts.aclose()
