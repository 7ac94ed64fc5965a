"""GET /health/live and /health/ready, for whoever starts, watches and feeds the server."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwonnx.handlers.model_host import HostStatus, ModelHost

_NO_STORE = {"cache-control": "no-store"}


async def live(request: Request) -> Response:
    """200 as long as the process answers, also while the model loads: not a reason to restart it."""
    return JSONResponse({"status": "live"}, headers=_NO_STORE)


async def ready(request: Request) -> Response:
    """200 once the model has answered a warm-up token; 503 before, and once the server stops."""
    host: ModelHost = request.app.state.host
    status = host.status
    return JSONResponse({"status": status.value}, 200 if status is HostStatus.READY else 503, headers=_NO_STORE)
