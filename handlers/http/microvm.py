"""The lifecycle hooks of AWS Lambda MicroVMs, over HTTP; off unless QWONNX_MICROVM_HOOKS is true.

    ready                 of an image that is built: 200 once the model answers; a snapshot follows
    validate              of a copy of that image, for a test
    run, resume           of a copy that begins, or goes on: what must be new is made new (chat/restore.py)
    suspend               of one that is about to be copied to disk
    terminate             of one that ends; nothing is kept that would have to be written

They need no key, because the platform sends none, and any client may call them: none of them ends a request, and each
costs less than a request.

https://docs.aws.amazon.com/lambda/latest/microvm-api/API_MicrovmHooks.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qwonnx.handlers.model_host import HostStatus, ModelHost

PREFIX = "/aws/lambda-microvms/runtime/v1"
_MAX_BODY_BYTES = 64 << 10  # a hook's payload has 16 KB at most


class MicrovmHooks:
    """The routes of one application.

    Args:
        host: of the engine.
        before_snapshot, after_restore: what they do; the latter gets the hook's body. Both block.
    """

    def __init__(
        self, host: ModelHost, before_snapshot: Callable[[], None], after_restore: Callable[[bytes], None]
    ) -> None:
        self._host = host
        self._before_snapshot = before_snapshot
        self._after_restore = after_restore
        self._one_at_a_time = asyncio.Lock()

    @property
    def routes(self) -> list[Route]:
        answers = {
            "ready": self._ready,
            "validate": self._validate,
            "run": self._restored,
            "resume": self._restored,
            "suspend": self._suspend,
            "terminate": self._validate,
        }
        return [Route(f"{PREFIX}/{name}", answer, methods=["POST"]) for name, answer in answers.items()]

    async def _ready(self, request: Request) -> Response:
        if self._host.status is not HostStatus.READY:
            return JSONResponse({"status": self._host.status.value}, 503)
        return await self._done(self._before_snapshot)

    async def _validate(self, request: Request) -> Response:
        return JSONResponse({"status": self._host.status.value})

    async def _restored(self, request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY_BYTES:
                return JSONResponse({"status": "the hook's body is too large"}, 413, {"connection": "close"})
        return await self._done(lambda: self._after_restore(bytes(body)))

    async def _suspend(self, request: Request) -> Response:
        return await self._done(self._before_snapshot)

    async def _done(self, work: Callable[[], None]) -> Response:
        async with self._one_at_a_time:
            await asyncio.to_thread(work)
        return JSONResponse({"status": "done"})
