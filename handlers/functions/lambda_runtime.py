"""A runtime of our own for AWS Lambda: `python -m qwonnx.handlers.functions.lambda_runtime`.

For images and for `provided.*` functions, whose `bootstrap` is this command. It streams, which Amazon's client for
Python cannot. No package is needed beyond the server's.

    start -> load -> (SnapStart: before_snapshot, restore/next, after_restore) -> N times: next -> answer

N is AWS_LAMBDA_MAX_CONCURRENCY, which Managed Instances set: N events are answered at a time by one engine, whose steps
they share. Elsewhere N is 1.

Answers to function URLs and to API Gateway's REST APIs are streamed, and those to HTTP APIs and load balancers, which
cannot stream, are sent as a whole. QWONNX_INVOKE_MODE=BUFFERED sends all as a whole, for a function URL or an
integration that is configured that way.

SIGTERM ends the process with status 0, after the running answers, or after QWONNX_SHUTDOWN_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.types import Message

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.functions.lambda_events import (
    AnswerForm,
    EventForm,
    HttpEvent,
    MalformedEventError,
    UnknownEventError,
    prelude,
    read_event,
)
from qwonnx.handlers.functions.lambda_instance import (
    INITIALIZATION,
    Invocation,
    LambdaInstance,
    document_of,
    is_warm_up,
    refusal,
    warm_answer,
)
from qwonnx.handlers.functions.runtime_api import NextEvent, RuntimeApi, RuntimeApiError, StreamedAnswer
from qwonnx.handlers.http.exchange import GivenRequest, WholeAnswer, headers_of
from qwonnx.runtime.artifact.manifest import ArtifactError
from qwonnx.runtime.errors import QwonnxRuntimeError, SettingsError

logger = logging.getLogger("qwonnx.lambda")

_API, _CONCURRENCY, _MODE = "AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_MAX_CONCURRENCY", "QWONNX_INVOKE_MODE"
_TRACE = "_X_AMZN_TRACE_ID"
_STREAMED, _BUFFERED = "RESPONSE_STREAM", "BUFFERED"
_STREAMING_FORMS = (EventForm.FUNCTION_URL, EventForm.REST_API)
_MOST_CONCURRENT = 1024
_ON_PURPOSE = (QwonnxRuntimeError, ArtifactError)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class LambdaRuntime:
    """Fetches events and answers them, until it is stopped.

    Args:
        api: of Lambda.
        instance: answers events.
        num_pollers: events that are answered at a time.
        streams: answers may be streamed.
    """

    def __init__(self, api: RuntimeApi, instance: LambdaInstance, num_pollers: int, *, streams: bool) -> None:
        self._api = api
        self._instance = instance
        self._num_pollers = num_pollers
        self._streams = streams
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Fetch no more events; run() returns after the running answers."""
        self._stopping.set()

    async def run(self) -> None:
        """Answer events until stop().

        Raises:
            RuntimeApiError: the Runtime API cannot be reached.
        """
        expiring = asyncio.ensure_future(self._expire())
        pollers = [asyncio.ensure_future(self._poll()) for _ in range(self._num_pollers)]
        try:
            await asyncio.gather(*pollers)
        finally:
            for task in (*pollers, expiring):
                task.cancel()
            await asyncio.gather(*pollers, expiring, return_exceptions=True)

    async def _expire(self) -> None:
        """After stop(), give running answers their time, and then end them."""
        await self._stopping.wait()
        self._instance.host.begin_close()
        await asyncio.sleep(self._instance.settings.shutdown_seconds)
        await asyncio.to_thread(self._instance.host.close)

    async def _poll(self) -> None:
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                upcoming = asyncio.ensure_future(self._api.next())
                try:
                    await asyncio.wait((upcoming, stopping), return_when=asyncio.FIRST_COMPLETED)
                    if not upcoming.done():
                        return
                finally:
                    if not upcoming.done():
                        upcoming.cancel()
                        await asyncio.gather(upcoming, return_exceptions=True)
                await self._handle(upcoming.result())
        finally:
            stopping.cancel()

    async def _handle(self, event: NextEvent) -> None:
        """Answer one event. A fault of ours ends its invocation, and no other."""
        if event.trace_id and self._num_pollers == 1:
            os.environ[_TRACE] = event.trace_id
        try:
            await self._answer(event)
        except RuntimeApiError as error:
            logger.error("invocation %s: %s", event.id, error)
        except UnknownEventError as error:
            logger.warning("invocation %s: %s", event.id, error)
            await self._report(event, "Function.UnknownEvent", str(error))
        except _ON_PURPOSE as error:
            logger.error("invocation %s: %s", event.id, error)
            await self._report(event, f"Function.{type(error).__name__}", str(error))
            raise  # the model cannot be loaded: Lambda starts another instance
        except Exception as error:
            logger.exception("invocation %s failed because of a fault in qwonnx", event.id)
            await self._report(event, "Function.Fault", f"a fault in qwonnx ({type(error).__name__}): see the log")

    async def _report(self, event: NextEvent, kind: str, message: str) -> None:
        try:
            await self._api.report_invocation_error(event.id, kind, message)
        except RuntimeApiError as error:
            logger.error("invocation %s: %s", event.id, error)

    async def _answer(self, event: NextEvent) -> None:
        invocation = Invocation(event.id, event.remaining_seconds, event.function_arn, event.trace_id)
        document = _decoded(event.body)
        if is_warm_up(document):
            await self._instance.ready(invocation)
            await self._api.respond(event.id, msgspec.json.encode(warm_answer()))
            return
        try:
            read = read_event(document)
        except MalformedEventError as error:
            await self._send(event, error.answer, refusal(error.refusal))
            return
        await self._instance.ready(invocation)
        try:
            request = GivenRequest(read.body())
        except ServiceError as error:
            await self._send(event, read.answer, refusal(error, read.path))
            return
        if self._is_streamed(read.answer):
            await self._stream(event, read, invocation, request)
            return
        await self._api.respond(event.id, msgspec.json.encode(await self._instance.whole(read, invocation, request)))

    def _is_streamed(self, to: AnswerForm) -> bool:
        return self._streams and to.form in _STREAMING_FORMS

    async def _send(self, event: NextEvent, to: AnswerForm, answer: WholeAnswer) -> None:
        """Send an answer that is ready, as its sender expects it."""
        if not self._is_streamed(to):
            await self._api.respond(event.id, msgspec.json.encode(document_of(to, answer)))
            return
        async with await self._api.stream(event.id, lambda: None) as streamed:
            await streamed.begin(prelude(to, answer.status, answer.headers))
            await streamed.send(bytes(answer.body))
            await streamed.end()

    async def _stream(self, event: NextEvent, read: HttpEvent, invocation: Invocation, request: GivenRequest) -> None:
        async with await self._api.stream(event.id, request.leave) as streamed:
            sender = _Sender(streamed, read.answer)
            try:
                await self._instance.streamed(read, invocation, request, sender.send)
            except Exception as error:  # noqa: BLE001 - the access log has it; an answer that has begun is cut off
                await streamed.fail("Function.Fault", f"a fault in qwonnx ({type(error).__name__}): see the log")
                return
            await sender.end()


class _Sender:
    """ASGI's sending side of a streamed answer. The answer ends with its last piece, before the application returns:
    what that does afterwards is not waited for, and belongs to the invocation, which lasts until the next event is
    fetched.
    """

    def __init__(self, streamed: StreamedAnswer, to: AnswerForm) -> None:
        self._streamed = streamed
        self._to = to
        self._has_ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._streamed.begin(prelude(self._to, message["status"], headers_of(message)))
        elif message["type"] == "http.response.body":
            await self._streamed.send(message.get("body", b""))
            if not message.get("more_body", False):
                await self.end()

    async def end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            await self._streamed.end()


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnknownEventError("the event is not JSON: check the function's trigger") from None


def _num_pollers(environment: Mapping[str, str]) -> int:
    text = environment.get(_CONCURRENCY, "").strip() or "1"
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST_CONCURRENT:
        raise SettingsError(f"{_CONCURRENCY} is {text!r}: give 1 to {_MOST_CONCURRENT}")
    return int(text)


def _streams(environment: Mapping[str, str]) -> bool:
    mode = environment.get(_MODE, "").strip().upper() or _STREAMED
    if mode not in (_STREAMED, _BUFFERED):
        raise SettingsError(f"{_MODE} is {mode!r}: give {_STREAMED} or {_BUFFERED}, as the function URL's InvokeMode")
    return mode == _STREAMED


async def _initialized(api: RuntimeApi) -> LambdaRuntime:
    """Everything before the first event.

    Raises:
        QwonnxRuntimeError, ArtifactError: the settings or the artifact cannot be used; Lambda was told.
        RuntimeApiError: see there.
    """
    try:
        num_pollers, streams = _num_pollers(os.environ), _streams(os.environ)
        instance = LambdaInstance.from_environment()
        await _beside(instance.initialize)
    except _ON_PURPOSE as error:
        await api.report_init_error(f"Runtime.{type(error).__name__}", str(error))
        raise
    if os.environ.get(INITIALIZATION) == "snap-start":
        await _through_snapshot(api, instance)
    return LambdaRuntime(api, instance, num_pollers, streams=streams)


async def _through_snapshot(api: RuntimeApi, instance: LambdaInstance) -> None:
    try:
        await asyncio.to_thread(instance.hooks.before_snapshot)
    except Exception as error:
        await api.report_init_error("Runtime.BeforeSnapshotError", f"{type(error).__name__}: {error}")
        raise
    await api.restore_next()
    try:
        await asyncio.to_thread(instance.hooks.after_restore)
    except Exception as error:
        await api.report_restore_error("Runtime.AfterRestoreError", f"{type(error).__name__}: {error}")
        raise


async def _beside(work: Callable[[], None]) -> None:
    """Work in a thread that does not keep the process alive: loading takes minutes perhaps, and SIGTERM ends it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as raised:  # noqa: BLE001 - the caller gets it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="qwonnx-initialize", daemon=True).start()
    await done


async def _run() -> None:
    address = os.environ.get(_API, "").strip()
    if not address:
        raise SettingsError(f"{_API} is not set: Lambda and its emulator set it; elsewhere use `qwonnx serve`")
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(_initialized(RuntimeApi(address)))
    for number in _SIGNALS:
        loop.add_signal_handler(number, starting.cancel)
    try:
        runtime = await starting
    except asyncio.CancelledError:
        return  # stopped before the first event
    for number in _SIGNALS:
        loop.add_signal_handler(number, runtime.stop)
    await runtime.run()


def main() -> int:
    """Run until the process is stopped; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(_run())
    except (*_ON_PURPOSE, RuntimeApiError) as error:
        print(f"qwonnx: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    # The engine's threads may be in a step, or load a model; nothing waits for them any more.
    os._exit(status)
