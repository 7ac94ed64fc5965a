"""GET / and GET /version: what runs here. HEAD works too: clients probe a server with it."""

from __future__ import annotations

import asyncio
from functools import cache

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_NAME = "qwonnx"


async def version(request: Request) -> Response:
    """The installed version."""
    return JSONResponse({"version": await asyncio.to_thread(installed_version)})


async def root(request: Request) -> Response:
    """The name, the version, and the routes."""
    routes = sorted({route.path for route in request.app.routes if hasattr(route, "path")} - {"/"})
    return JSONResponse({"name": _NAME, "version": await asyncio.to_thread(installed_version), "routes": routes})


@cache
def installed_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version  # 20 ms, which a start does not spend

    try:
        return version(_NAME)
    except PackageNotFoundError:  # a source tree on a path
        return "unknown"
