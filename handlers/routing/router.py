"""The application of `qwonnx route`: it passes requests on, and writes an end where a replica broke off.

A request is asked again at another replica as long as its client has nothing of an answer: if a replica cannot be
reached, does not answer, is loading or closing, or breaks off. An answer without a stream is therefore read whole; of
a stream, what comes before its first token is held back. After that, a stream that breaks off ends with an error event
of its API.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qwonnx.handlers import errors
from qwonnx.handlers.errors import RETRY_AFTER_SECONDS, ErrorKind, ServiceError
from qwonnx.handlers.http import prometheus_text
from qwonnx.handlers.http.access_log import REQUEST_ID_HEADER, AccessLog, request_id_of
from qwonnx.handlers.http.api import Apis
from qwonnx.handlers.http.body import BodyLimits, received
from qwonnx.handlers.http.disconnect import while_connected
from qwonnx.handlers.http.sse import EventStream
from qwonnx.handlers.routing.affinity import affinity_of
from qwonnx.handlers.routing.held_request import Answer, Asked, HeldRequest
from qwonnx.handlers.routing.replicas import Address, Replica, Replicas
from qwonnx.handlers.routing.upstream import Headers, Pool, UpstreamError

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
_CHECK_DEADLINE_SECONDS = 2.0
_READY_PATH = b"/health/ready"
_MOST_TRIES = 4
_MARKS = (b"\n\n", b"\r\n\r\n")  # of the end of an event
_SMALL_BYTES = 64 << 10  # a body that the event loop itself decodes
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# Of a connection, or written anew here.
_NOT_PASSED = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"host", b"content-length", b"expect", b"date", b"server"),
        REQUEST_ID_HEADER.encode(),
    }
)
_AGAIN = frozenset({429, 502, 503})  # another replica may take it

Find = Callable[[], Awaitable[Sequence[Address]]]


@dataclass(slots=True)
class _Counts:
    retried: int = 0
    cut: int = 0


class Router:
    """Replicas behind one application.

    Args:
        find: the addresses of the replicas now; an OSError keeps those from before.
        find_seconds: until it is asked again; None: never.
        check_seconds: between two checks of a replica.
        apis: they render errors.
        limits: of bodies.
    """

    def __init__(
        self,
        find: Find,
        *,
        find_seconds: float | None,
        check_seconds: float = _CHECK_SECONDS,
        apis: Apis,
        limits: BodyLimits,
    ) -> None:
        self.replicas = Replicas()
        self._find, self._find_seconds, self._check_seconds = find, find_seconds, check_seconds
        self._apis, self._limits = apis, limits
        self._pool = Pool()
        self._counts = _Counts()
        self._closing = False
        self.app = Starlette(
            routes=[
                Route("/health/live", self._live),
                Route("/health/ready", self._ready),
                Route("/metrics", self._metrics),
                Route("/{path:path}", self._pass_on, methods=_METHODS),
            ],
            middleware=[Middleware(AccessLog, apis=apis)],
            exception_handlers=apis.exception_handlers(),
            lifespan=self._lifespan,
        )
        self.app.router.redirect_slashes = False

    def begin_close(self) -> None:
        """Refuse new requests; running ones continue."""
        self._closing = True

    def close(self) -> None:
        """Running answers end by their connections; there is nothing else to end."""
        self._closing = True

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        checking = asyncio.create_task(self._keep_checking())
        try:
            yield
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
            self._pool.close()

    async def _keep_checking(self) -> None:
        found_at = -float("inf")
        while True:
            now = time.monotonic()
            if found_at < 0 or (self._find_seconds is not None and now - found_at >= self._find_seconds):
                try:
                    self.replicas.update(await self._find())
                    found_at = now
                except OSError as error:
                    logger.warning("the replicas cannot be found (%s)", error)
            await asyncio.gather(*(self._check(each) for each in self.replicas.all))
            await asyncio.sleep(self._check_seconds)

    async def _check(self, replica: Replica) -> None:
        was_ready = replica.is_ready
        try:
            async with asyncio.timeout(_CHECK_DEADLINE_SECONDS):
                exchange = await self._pool.ask(replica.address, "GET", _READY_PATH, [], b"")
                try:
                    async for _ in exchange.chunks():
                        pass
                finally:
                    exchange.close()
            replica.is_ready = exchange.head.status == 200
        except (UpstreamError, TimeoutError):
            replica.is_ready = False
        if replica.is_ready is not was_ready:
            logger.info("%s is %s", replica.address, "ready" if replica.is_ready else "not ready")
        if not replica.is_ready:
            self._pool.forget(replica.address)

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def _ready(self, request: Request) -> Response:
        is_ready = not self._closing and any(each.is_ready for each in self.replicas.all)
        return JSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)

    async def _pass_on(self, request: Request) -> Response:
        """
        Raises:
            ServiceError: 503, no replica has answered.
            ClientDisconnect: the client disconnected first.
        """
        if self._closing:
            raise errors.closing()
        async with received(request, self._limits) as data:
            body = bytes(data)
        if len(body) <= _SMALL_BYTES:
            affinity = affinity_of(body)
        else:
            affinity = await asyncio.to_thread(affinity_of, body)
        asked = Asked(request.method, _target(request), _passed_headers(request), body, affinity)
        return await while_connected(request.receive, self._answered(request.scope["path"], asked))

    async def _answered(self, path: str, asked: Asked) -> Response:
        tried: list[Replica] = []
        refusal: Response | None = None
        while len(tried) < _MOST_TRIES and (replica := self.replicas.choose(asked.affinity, tried)) is not None:
            if tried:
                self._counts.retried += 1
            tried.append(replica)
            held = HeldRequest(self._pool, replica)
            try:
                answer = await held.begin(asked)
            except UpstreamError as error:
                logger.warning("%s: %s", replica.address, error)
                replica.failed += 1
                replica.is_ready = False  # until its next check
                held.close()
                continue
            except BaseException:
                held.close()
                raise
            if answer.status in _AGAIN:
                replica.failed += 1
                refusal = _whole(answer)
                held.close()
                continue
            replica.answered += 1
            if answer.is_whole:
                held.close()
                return _whole(answer)
            return _Stream(self._rest(path, held, answer.first), held, answer)
        if refusal is not None:
            return refusal
        message = "no server is ready to answer: try again later"
        headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
        raise ServiceError(ErrorKind.UNAVAILABLE, 503, message, code="no_replica", headers=headers)

    async def _rest(self, path: str, held: HeldRequest, first: bytes) -> AsyncGenerator[bytes, None]:
        """A stream, from what was held back on, with an end in any case."""
        events = _WholeEvents()
        yield events.add(first)
        try:
            async for chunk in held.chunks():
                if whole := events.add(chunk):
                    yield whole
            yield events.rest
        except UpstreamError as error:
            logger.warning("%s: %s, after its answer had begun", held.replica.address, error)
            held.replica.cut += 1
            held.replica.is_ready = False
            message = "the server of this answer was lost: send the request again"
            lost = ServiceError(ErrorKind.UNAVAILABLE, 503, message, code="replica_lost")
            yield b"data: " + bytes(self._apis.error_response(path, lost).body) + b"\n\n"

    async def _metrics(self, request: Request) -> Response:
        return prometheus_text.page(self._lines())

    def _lines(self) -> list[str]:
        value, head, line = prometheus_text.value, prometheus_text.head, prometheus_text.line
        replicas = self.replicas.all
        ready = sum(each.is_ready for each in replicas)
        lines = [*value("router_replicas_ready", "gauge", "Replicas that answered their last check.", ready)]
        lines += value("router_replicas", "gauge", "Replicas that are known.", len(replicas))
        text = "Conversations whose replica is known."
        lines += value("router_conversations", "gauge", text, self.replicas.num_conversations)
        text = "Requests that were asked again at another replica."
        lines += value("router_retries_total", "counter", text, self._counts.retried)
        text = "Requests that went elsewhere because their replica had its share."
        lines += value("router_spilled_total", "counter", text, self.replicas.spilled)
        for name, kind, text, field in (
            ("router_in_flight", "gauge", "Requests that the router waits for.", "in_flight"),
            ("router_answered_total", "counter", "Requests that were answered.", "answered"),
            ("router_failed_total", "counter", "Requests that a replica refused or lost before an answer.", "failed"),
            ("router_cut_total", "counter", "Streams that a replica lost in the middle.", "cut"),
        ):
            lines += head(name, kind, text)
            lines += [line(name, getattr(each, field), {"replica": str(each.address)}) for each in replicas]
        return lines


class _WholeEvents:
    """Cuts a stream after events, so that an error event never follows a half of another.

    rest: what has come since the last end of an event.
    """

    def __init__(self) -> None:
        self.rest = b""

    def add(self, chunk: bytes) -> bytes:
        """The whole events until now that were not returned yet."""
        data = self.rest + chunk
        end = max((data.rfind(mark) + len(mark) for mark in _MARKS if mark in data), default=0)
        self.rest = data[end:]
        return data[:end]


class _Stream(EventStream):
    """A replica's stream with its headers."""

    def __init__(self, events: AsyncGenerator[bytes, None], held: HeldRequest, answer: Answer) -> None:
        super().__init__(events, held, keep_alive_seconds=None)  # the replica writes comments
        self.status_code = answer.status
        self.raw_headers = _shown(answer.headers)


def _whole(answer: Answer) -> Response:
    response = Response(answer.first, answer.status)
    length = (b"content-length", b"%d" % len(answer.first))
    response.raw_headers = [*_shown(answer.headers), length]
    return response


def _shown(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name not in _NOT_PASSED]


def _target(request: Request) -> bytes:
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    return path + (b"?" + query if query else b"")


def _passed_headers(request: Request) -> Headers:
    kept = [(name, value) for name, value in request.scope["headers"] if name.lower() not in _NOT_PASSED]
    return [*kept, (REQUEST_ID_HEADER.encode(), request_id_of(request.scope).encode())]
