"""The engine for a request; while it loads, a bounded number of requests may wait for it.

What activates an instance (Knative's activator, a function URL) often sends exactly one request, and passes its answer
on whatever it is. Such a request is held until the model has answered its warm-up token. Health checks are never held.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from qwonnx.handlers import errors
from qwonnx.handlers.http import deadline
from qwonnx.handlers.http.disconnect import while_connected
from qwonnx.handlers.model_host import HostStatus, ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine


async def engine_for(request: Request) -> Engine:
    """The engine that answers a request, whose body must have been read.

    Raises:
        ServiceError: 503, the engine is not ready and the request may not wait, or waited until its deadline; 429, as
            many requests wait as may: see ServerSettings.hold_while_loading.
        starlette.requests.ClientDisconnect: the client disconnected first. Its place is free again.
    """
    host: ModelHost = request.app.state.host
    if host.status is not HostStatus.LOADING:
        return host.ready_engine()
    settings: ServerSettings = request.app.state.settings
    deadline.note_arrival(request.scope)
    ends_at = deadline.of_request(request.scope, settings)
    try:
        async with asyncio.timeout_at(ends_at):
            return await while_connected(request.receive, host.engine_when_ready(settings.hold_while_loading))
    except TimeoutError:
        raise errors.not_ready("is loading") from None
