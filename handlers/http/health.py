"""GET /health/live, /health/ready and /health, which is the same, for process managers and load balancers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwonnx.handlers.model_host import HostStatus, ModelHost

_NO_STORE = {"cache-control": "no-store"}


async def live(request: Request) -> Response:
    """200 while the process answers, even while the model loads: it need not be restarted."""
    return JSONResponse({"status": "live"}, headers=_NO_STORE)


async def ready(request: Request) -> Response:
    """200 after the model has answered a warm-up token; otherwise 503, also while the server stops."""
    host: ModelHost = request.app.state.host
    status = host.status
    return JSONResponse({"status": status.value}, 200 if status is HostStatus.READY else 503, headers=_NO_STORE)
