"""The bridge between the engine's thread and the event loop, one request at a time.

The engine calls back on its own thread; here that becomes an asynchronous iterator. Leaving it early aborts the
request: exactly once, and never one that has ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType

from qwonnx.handlers import errors
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.params import SamplingParams


class OutputStream:
    """Outputs of one submitted request; an asynchronous context manager that aborts what has not ended.

    Made on the event loop that iterates it. Outputs are a few hundred bytes each and at most max_tokens of them, so the
    queue has no bound of its own: an engine that waited for a slow client would make every other one wait.
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
    ) -> None:
        """Submit.

        Args:
            engine, prompt_token_ids, params, request_id, snapshot_at: see Engine.submit.
            deadline: the loop's time at which the answer ends with LENGTH, if it has not ended otherwise.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: what Engine.submit raises.
        """
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._deadline = deadline
        self._ended = False
        self._request_id = engine.submit(
            prompt_token_ids, params, self._receive, request_id=request_id, snapshot_at=snapshot_at
        )

    def _receive(self, output: RequestOutput) -> None:
        """On the engine's thread."""
        if output.finish_reason is not None:
            self._ended = True
        self._loop.call_soon_threadsafe(self._put, output)

    def _put(self, output: RequestOutput) -> None:
        self._queue.put_nowait(output)
        self._begun.set()

    async def begun(self) -> None:
        """Wait until there is an output.

        Raises:
            ServiceError: 504, there is none at the deadline.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._begun.wait()
        except TimeoutError:
            self.abort()
            raise errors.out_of_time() from None
        except BaseException:
            self.abort()  # nobody has entered yet, so nobody else would
            raise

    async def __aiter__(self) -> AsyncGenerator[RequestOutput, None]:
        """The outputs.

        Raises:
            ServiceError: 504, there is none at the deadline.
        """
        output: RequestOutput | None = None
        while (following := await self._next()) is not None:
            output = following
            yield output
            if output.finish_reason is not None:
                return
        if output is None:
            raise errors.out_of_time()
        yield dataclasses.replace(output, text="", token_ids=(), finish_reason=FinishReason.LENGTH)

    async def _next(self) -> RequestOutput | None:
        """The next output; None if the deadline comes first, with which the request is aborted."""
        if self._deadline is None:
            return await self._queue.get()
        if self._loop.time() < self._deadline:
            try:
                async with asyncio.timeout_at(self._deadline):
                    return await self._queue.get()
            except TimeoutError:
                pass
        self.abort()
        # What came in time is part of the answer, also its end; that of the abort is not.
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
