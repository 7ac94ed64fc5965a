"""Fakes of an engine and of a network, for tests that need neither."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from starlette.types import ASGIApp

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput


def output(
    text: str = "", *token_ids: int, reason: FinishReason | None = None, generated: int | None = None, **more: Any
) -> RequestOutput:
    """A delta of an answer to a prompt of seven tokens, two of which were cached."""
    num_generated = len(token_ids) if generated is None else generated
    return RequestOutput("request", text, token_ids, reason, 7, num_generated, 2, **more)


class FakeEngine(Engine):
    """Takes one request, and gives the outputs that the test sets."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.aborted: list[str] = []

    def submit(
        self, prompt_token_ids: Sequence[int], params: Any, on_output: Callable[[RequestOutput], None], **options: Any
    ) -> str:
        self.submitted.append({"token_ids": list(prompt_token_ids), "params": params, **options})
        self.give = on_output
        return "request"

    def abort(self, request_id: str, *, keep: bool = False) -> None:
        self.aborted.append(request_id)


def ask(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """The application's answer to one request, without a server."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())
