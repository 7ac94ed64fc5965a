"""A client of AWS Lambda's Runtime API, for asyncio: the next event, its answer whole or in pieces, and errors.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html and runtimes-custom.html. Each call opens a connection to
the same machine, which takes a tenth of a millisecond; none is open while a snapshot is taken.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import h11

_VERSION = "/2018-06-01/runtime"
_MAX_EVENT_BYTES = 64 << 20  # six times what Lambda sends
_PIECE_BYTES = 64 << 10
_ERROR_TYPE, _ERROR_BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"
_STREAMED_TYPE = "application/vnd.awslambda.http-integration-response"
_PRELUDE_END = bytes(8)
_MAX_MESSAGE = 2000  # characters


class RuntimeApiError(Exception):
    """The Runtime API cannot be reached, or refuses a call; the message says which."""


@dataclass(frozen=True, slots=True)
class NextEvent:
    """An event with what Lambda says about its invocation.

    id: Amazon's request id.
    body: JSON.
    deadline: seconds since 1970, or None.
    function_arn, trace_id: or empty.
    """

    id: str
    body: bytes
    deadline: float | None
    function_arn: str
    trace_id: str

    def remaining_seconds(self) -> float | None:
        """Until the invocation times out."""
        return None if self.deadline is None else self.deadline - time.time()


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class RuntimeApi:
    """The Runtime API of one instance.

    Args:
        address: host and port, as AWS_LAMBDA_RUNTIME_API has it.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        host, _, port = address.rpartition(":")
        self._host, self._port = (host.strip("[]"), int(port)) if port.isdecimal() and host else (address, 80)

    async def next(self) -> NextEvent:
        """Wait for the next event, without a limit.

        Raises:
            RuntimeApiError: see there.
        """
        reply = await self._call("GET", "/invocation/next")
        millis = reply.headers.get("lambda-runtime-deadline-ms", "")
        name = reply.headers.get("lambda-runtime-aws-request-id", "")
        if not name:
            raise RuntimeApiError(f"Lambda's Runtime API at {self._address} gave an event without a request id")
        return NextEvent(
            id=name,
            body=reply.body,
            deadline=int(millis) / 1000 if millis.isdecimal() else None,
            function_arn=reply.headers.get("lambda-runtime-invoked-function-arn", ""),
            trace_id=reply.headers.get("lambda-runtime-trace-id", ""),
        )

    async def restore_next(self) -> None:
        """Say that the instance may be copied. Returns in each copy.

        Raises:
            RuntimeApiError: see there.
        """
        await self._call("GET", "/restore/next")

    async def respond(self, event_id: str, document: bytes) -> None:
        """Answer an event as a whole.

        Args:
            event_id: NextEvent.id.
            document: JSON.

        Raises:
            RuntimeApiError: see there; also if the answer is larger than Lambda takes.
        """
        await self._call("POST", f"/invocation/{event_id}/response", document)

    async def report_invocation_error(self, event_id: str, kind: str, message: str) -> None:
        """Say that an event has failed. For the arguments, see report_init_error(). Raises what that raises."""
        await self._report(f"/invocation/{event_id}/error", kind, message)

    async def report_init_error(self, kind: str, message: str) -> None:
        """Say that the instance cannot start.

        Args:
            kind: of the form Category.Reason.
            message: one line.

        Raises:
            RuntimeApiError: see there.
        """
        await self._report("/init/error", kind, message)

    async def report_restore_error(self, kind: str, message: str) -> None:
        """Say that a copy cannot go on. As report_init_error()."""
        await self._report("/restore/error", kind, message)

    async def stream(self, event_id: str, on_departure: Callable[[], None]) -> StreamedAnswer:
        """Begin to answer an event in pieces.

        Args:
            event_id: NextEvent.id.
            on_departure: called once if nobody reads the answer any more.

        Raises:
            RuntimeApiError: see there.
        """
        connection = await self._connected()
        headers = [
            *self._headers(_STREAMED_TYPE),
            ("Lambda-Runtime-Function-Response-Mode", "streaming"),
            ("Transfer-Encoding", "chunked"),
            ("Trailer", f"{_ERROR_TYPE}, {_ERROR_BODY}"),
        ]
        target = f"{_VERSION}/invocation/{event_id}/response"
        return StreamedAnswer(connection, h11.Request(method="POST", target=target, headers=headers), on_departure)

    async def _report(self, path: str, kind: str, message: str) -> None:
        await self._call("POST", path, error_document(kind, message), ((_ERROR_TYPE, kind),))

    async def _call(
        self, method: str, path: str, body: bytes | None = None, more: tuple[tuple[str, str], ...] = ()
    ) -> _Reply:
        connection = await self._connected()
        headers = [*self._headers("application/json"), *more]
        if body is not None:
            headers.append(("Content-Length", str(len(body))))
        try:
            connection.send(h11.Request(method=method, target=_VERSION + path, headers=headers))
            if body:
                connection.send(h11.Data(data=body))
            connection.send(h11.EndOfMessage())
            await connection.drain()
            reply = await connection.reply()
        except (OSError, EOFError, h11.ProtocolError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if not 200 <= reply.status < 300:
            raise RuntimeApiError(f"Lambda's Runtime API answered {method} {path} with {reply.status}")
        return reply

    async def _connected(self) -> _Connection:
        try:
            return _Connection(*await asyncio.open_connection(self._host, self._port))
        except OSError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> RuntimeApiError:
        reason = getattr(error, "strerror", None) or str(error) or "it closed the connection"
        return RuntimeApiError(
            f"Lambda's Runtime API at {self._address} cannot be reached ({reason}): "
            "AWS_LAMBDA_RUNTIME_API must name it, as Lambda and its emulator set it"
        )

    def _headers(self, content_type: str) -> list[tuple[str, str]]:
        return [("Host", self._address), ("User-Agent", "qwonnx"), ("Content-Type", content_type)]


class StreamedAnswer:
    """An answer in pieces; as an asynchronous context manager it closes its connection.

    Args:
        connection: new.
        request: the head of the call.
        on_departure: see RuntimeApi.stream().
    """

    def __init__(self, connection: _Connection, request: h11.Request, on_departure: Callable[[], None]) -> None:
        self._connection = connection
        self._on_departure = on_departure
        self._is_broken = False
        self._ended = False
        connection.send(request)
        self._reply = asyncio.ensure_future(connection.reply())
        self._reply.add_done_callback(self._on_reply)

    async def begin(self, prelude: Mapping[str, object]) -> None:
        """Send status and headers."""
        await self.send(json.dumps(prelude).encode() + _PRELUDE_END)

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body; does nothing once nobody reads."""
        if self._is_broken or not piece:
            return
        try:
            self._connection.send(h11.Data(data=piece))
            await self._connection.drain()
        except OSError:
            self._break()

    async def end(self) -> None:
        """End the answer.

        Raises:
            RuntimeApiError: Lambda refuses it.
        """
        await self._finish(h11.EndOfMessage())

    async def fail(self, kind: str, message: str) -> None:
        """End the answer with an error, which Lambda takes from its trailers. For the arguments, see report_init_error.

        Raises:
            RuntimeApiError: Lambda refuses it.
        """
        body = base64.b64encode(error_document(kind, message)).decode()
        await self._finish(h11.EndOfMessage(headers=[(_ERROR_TYPE, kind), (_ERROR_BODY, body)]))

    async def _finish(self, end: h11.EndOfMessage) -> None:
        if self._is_broken or self._ended:
            return
        self._ended = True
        try:
            self._connection.send(end)
            await self._connection.drain()
            reply = await self._reply
        except (OSError, EOFError, h11.ProtocolError):
            return  # the reader left with the last piece; the next call tells if the API has gone
        if not 200 <= reply.status < 300:
            raise RuntimeApiError(f"Lambda's Runtime API answered a streamed response with {reply.status}")

    def _on_reply(self, reply: asyncio.Future[_Reply]) -> None:
        """An answer to our call that comes before its end means that nobody reads on."""
        if not reply.cancelled():
            reply.exception()  # was looked at
            if not self._ended:
                self._break()

    def _break(self) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._on_departure()

    async def __aenter__(self) -> StreamedAnswer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        self._reply.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._reply
        self._connection.close()


class _Connection:
    """One call on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._state = h11.Connection(h11.CLIENT)

    def send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        data = self._state.send(event)
        if data:
            self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def reply(self) -> _Reply:
        """Raises EOFError, OSError, h11.RemoteProtocolError."""
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                piece = await self._reader.read(_PIECE_BYTES)
                if not piece and head is None:
                    raise EOFError
                self._state.receive_data(piece)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _MAX_EVENT_BYTES:
                    raise h11.RemoteProtocolError("an answer is too large")
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)) or event is h11.PAUSED:
                if head is None:
                    raise EOFError
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                return _Reply(head.status_code, headers, bytes(body))

    def close(self) -> None:
        self._writer.close()


def error_document(kind: str, message: str) -> bytes:
    """An error as Lambda reads it."""
    return json.dumps({"errorMessage": message[:_MAX_MESSAGE], "errorType": kind, "stackTrace": []}).encode()
