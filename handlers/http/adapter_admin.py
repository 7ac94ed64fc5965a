"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: adapters of a running server.

The routes exist only if the settings have an admin key, which is another one than clients have. Adapters lie in one
folder of the server, and a request names a folder in it: no path leads elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.api_key import bearer_of
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.errors import AdapterError, InvalidRequestError, SettingsError

logger = logging.getLogger(__name__)

PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class LoadRequest(msgspec.Struct):
    lora_name: str
    lora_path: str


class UnloadRequest(msgspec.Struct):
    lora_name: str


_Asked = TypeVar("_Asked", LoadRequest, UnloadRequest)


def _parsed(data: bytearray, kind: type[_Asked]) -> _Asked:
    """
    Raises:
        ServiceError: 400.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise errors.invalid(f"the body is not right: {error}") from error


class AdapterAdmin:
    """Both routes.

    Args:
        key: that requests must send, as `Authorization: Bearer`.
        folder: of the adapters.
    """

    def __init__(self, key: str, folder: Path) -> None:
        self._key, self._folder = key.encode(), folder
        self.routes = [
            Route(PATHS[0], self._load, methods=["POST"]),
            Route(PATHS[1], self._unload, methods=["POST"]),
        ]

    async def _load(self, request: Request) -> Response:
        """
        Raises:
            ServiceError: 401; 400, the adapter cannot be used; 503.
        """
        asked = await self._read(request, LoadRequest)
        engine = await engine_for(request)
        host: ModelHost = request.app.state.host
        if asked.lora_name in host.model_names():
            raise errors.invalid(f"{asked.lora_name!r} is the model's own name: choose another", "lora_name")
        folder = self._found(asked.lora_path)
        try:
            digest = await asyncio.to_thread(engine.load_adapter, asked.lora_name, folder)
        except (AdapterError, SettingsError) as error:
            raise errors.invalid(str(error).replace(str(self._folder), "..."), "lora_path") from error
        logger.info("the adapter %r is %s", asked.lora_name, digest[:12])
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        """
        Raises:
            ServiceError: 401; 404, there is none of this name; 503.
        """
        asked = await self._read(request, UnloadRequest)
        engine = await engine_for(request)
        try:
            await asyncio.to_thread(engine.unload_adapter, asked.lora_name)
        except InvalidRequestError as error:
            raise ServiceError(ErrorKind.NOT_FOUND, 404, str(error), parameter="lora_name", code=error.code) from error
        logger.info("the adapter %r is unloaded", asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    async def _read(self, request: Request, kind: type[_Asked]) -> _Asked:
        if not hmac.compare_digest(bearer_of(request.headers).encode("latin-1", errors="replace"), self._key):
            message = "the admin key is missing or wrong: send it as `Authorization: Bearer KEY`"
            challenge = {"www-authenticate": "Bearer"}
            raise ServiceError(ErrorKind.UNAUTHENTICATED, 401, message, code="invalid_api_key", headers=challenge)
        limits: BodyLimits = request.app.state.bodies
        async with received(request, limits) as data:
            return await read_with(partial(_parsed, kind=kind), data)

    def _found(self, path: str) -> Path:
        """The folder of an adapter.

        Raises:
            ServiceError: 400, it does not lie in the folder of adapters.
        """
        try:
            root = self._folder.resolve()
            found = (root / path).resolve()
            is_within = found != root and found.is_relative_to(root) and found.is_dir()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links that turn in a circle
            is_within = False
        if not is_within:
            raise errors.invalid("lora_path is not a folder in the server's folder of adapters", "lora_path")
        return found
