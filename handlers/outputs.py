"""The bridge between the engine's thread and the event loop, one request at a time.

The engine calls back on its own thread; here that becomes an asynchronous iterator. Leaving it early aborts the
request: exactly once, and never one that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from qwonnx.runtime.engine import Engine
from qwonnx.runtime.request import RequestOutput
from qwonnx.runtime.sampling_params import SamplingParams


class OutputStream:
    """Outputs of one submitted request; an asynchronous context manager that aborts what has not ended.

    Made on the event loop that iterates it. Outputs are a few hundred bytes each and at most max_tokens of them, so the
    queue has no bound of its own: an engine that waited for a slow client would make every other one wait.
    """

    def __init__(
        self, engine: Engine, prompt_token_ids: Sequence[int], params: SamplingParams, *, request_id: str | None = None
    ) -> None:
        """Submit.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: what Engine.submit raises.
        """
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._ended = False
        self._request_id = engine.submit(prompt_token_ids, params, self._receive, request_id=request_id)

    def _receive(self, output: RequestOutput) -> None:
        """On the engine's thread."""
        if output.finish_reason is not None:
            self._ended = True
        self._loop.call_soon_threadsafe(self._queue.put_nowait, output)

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        while True:
            output = await self._queue.get()
            yield output
            if output.finish_reason is not None:
                return

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
