"""The bridge between the engine's thread and the event loop, for one request.

It turns the engine's callbacks into an asynchronous iterator. Leaving the iterator early aborts an unfinished request,
exactly once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from qwonnx.handlers import errors
from qwonnx.handlers.chat.loop_inbox import LoopInbox
from qwonnx.handlers.http import meter
from qwonnx.handlers.http.meter import AnswerMeter
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.params import SamplingParams

_SHORT_PROMPT = 4096  # tokens, which are submitted in about a millisecond


class OutputStream:
    """Outputs of one submitted request; as an asynchronous context manager it aborts an unfinished request.

    submitted() makes it, or the constructor on the event loop that iterates it. The queue has no bound: an engine that
    waited for a slow client would delay all other requests. It holds at most max_tokens outputs of a few hundred bytes
    each, and a server leaves a client that does not read (handlers/http/connection.py).
    """

    def __init__(
        self,
        engine: Engine,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        snapshot_at: Sequence[int] = (),
        deadline: float | None = None,
        owner: str = "",
        adapter: str = "",
        generated: Sequence[int] = (),
        keeps: bool = False,
        burst: int = 1,
        meter: AnswerMeter | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Submit the request. The time is proportional to the prompt: 40 ms for 100,000 tokens.

        Args:
            engine, prompt_token_ids, params, request_id, snapshot_at, owner, adapter, generated: see Engine.submit.
            deadline: the event loop's time at which an unfinished answer ends with LENGTH.
            keeps: such an answer ends with DEADLINE, and the engine keeps its state: see Engine.abort.
            burst: outputs that come at a time, but for the first one and the last ones. Nobody looks at a whole answer
                before its end, and a wake of the loop for each token costs more than the token's text.
            meter: gets the outputs as the event loop does.
            loop: that iterates it; None is the running one.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: see Engine.submit.
        """
        self._engine = engine
        self._loop = loop or asyncio.get_running_loop()
        self._inbox = LoopInbox.of(self._loop)
        self._queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._has_begun = False  # on the engine's side
        self._deadline = deadline
        self._keeps = keeps
        self._burst = burst
        self._meter = meter
        self._held: list[RequestOutput] = []  # on the way to a burst
        self._lock = threading.Lock()  # of what is held
        self._ended = False
        self._request_id = engine.submit(
            prompt_token_ids,
            params,
            self._receive,
            request_id=request_id,
            snapshot_at=snapshot_at,
            owner=owner,
            adapter=adapter,
            generated=generated,
        )

    @classmethod
    async def submitted(
        cls, engine: Engine, prompt_token_ids: Sequence[int], params: SamplingParams, **options: Any
    ) -> OutputStream:
        """As the constructor, but metered, and a long prompt is submitted in a thread.

        If this is cancelled, the request is aborted.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: see Engine.submit.
        """
        options.setdefault("meter", meter.opened(prompt_token_ids, len(options.get("generated", ()))))
        if len(prompt_token_ids) <= _SHORT_PROMPT:
            return cls(engine, prompt_token_ids, params, **options)
        loop = asyncio.get_running_loop()
        submit = partial(cls, engine, prompt_token_ids, params, loop=loop, **options)
        work = loop.run_in_executor(None, submit)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_abort_submitted)
            raise

    def _receive(self, output: RequestOutput) -> None:
        """Called on the engine's thread."""
        if output.finish_reason is not None:
            self._ended = True
        with self._lock:
            self._held.append(output)
            is_due = len(self._held) >= self._burst or not self._has_begun or output.finish_reason is not None
            if is_due:
                self._has_begun = True
                self._inbox.put(self._put, self._held)
                self._held = []

    def _put(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            self._queue.put_nowait(output)
        if self._meter is not None and outputs:
            self._meter.took(outputs[-1])
        self._begun.set()

    def _put_held(self) -> None:
        """Take what the engine has given until now, in its order."""
        with self._lock:
            self._inbox.deliver()
            self._put(self._held)
            self._held = []

    async def begun(self) -> None:
        """Wait for the first output.

        Raises:
            ServiceError: 504, the deadline passed before it.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._begun.wait()
        except TimeoutError:
            self.abort()
            raise errors.out_of_time() from None
        except BaseException:
            self.abort()  # the stream is not entered yet, so __aexit__ will not abort it
            raise

    async def __aiter__(self) -> AsyncGenerator[RequestOutput, None]:
        """The outputs.

        Raises:
            ServiceError: 504, the deadline passed before the first one.
        """
        output: RequestOutput | None = None
        while (following := await self._next()) is not None:
            output = following
            yield output
            if output.finish_reason is not None:
                return
        reason = FinishReason.LENGTH
        if self._keeps and self._begun.is_set():
            if not self._ended:
                self._ended = True
                self._engine.abort(self._request_id, keep=True)
            # The engine may be some tokens ahead, and the kept state includes them.
            while (following := await self._queue.get()).finish_reason is None:
                output = following
                yield output
            if following.finish_reason is not FinishReason.ABORT:
                yield following
                return
            reason = FinishReason.DEADLINE
        if output is None:
            raise errors.out_of_time()
        yield replace(output, text="", token_ids=(), finish_reason=reason)

    async def _next(self) -> RequestOutput | None:
        """The next output. If the deadline comes first, abort the request and return None."""
        if self._deadline is None:
            return await self._queue.get()
        if self._loop.time() < self._deadline:
            try:
                async with asyncio.timeout_at(self._deadline):
                    return await self._queue.get()
            except TimeoutError:
                pass
        if self._keeps and self._begun.is_set():
            return None
        self.abort()
        if self._has_begun:
            self._put_held()
        # An output that came in time is part of the answer, even the last one; the output of the abort is not.
        output = None if self._queue.empty() else self._queue.get_nowait()
        return None if output is None or output.finish_reason is FinishReason.ABORT else output

    def abort(self) -> None:
        """End the request within one step, if it has not ended."""
        if not self._ended:
            self._ended = True
            self._engine.abort(self._request_id)

    async def __aenter__(self) -> OutputStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()


def _abort_submitted(work: asyncio.Future[OutputStream]) -> None:
    """Nobody waits for this request any more, which a thread has just submitted."""
    if not work.cancelled() and work.exception() is None:
        work.result().abort()
