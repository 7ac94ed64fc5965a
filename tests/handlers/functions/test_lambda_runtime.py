"""Our own runtime on a loopback Runtime API: streams, several events at a time, errors, the end of the process."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.functions.lambda_events import read_event
from qwonnx.handlers.functions.lambda_instance import LambdaInstance
from qwonnx.handlers.functions.lambda_runtime import LambdaRuntime
from qwonnx.handlers.functions.runtime_api import RuntimeApi
from qwonnx.handlers.http.exchange import GivenRequest
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.functions.lambda_service import (
    OURS,
    Answer,
    LambdaService,
    balancer_event,
    event,
    json_of,
    rest_event,
    running,
    serving_api,
)
from tests.handlers.serving import MODEL, RUNTIME, chat, paced, until

SLOW = [sys.executable, "-m", "tests.handlers.functions.slow_runtime"]


@dataclass(frozen=True)
class Function:
    """A runtime in a thread of this process."""

    service: LambdaService
    engine: Engine

    def stream(self, request: dict[str, Any], **options: Any) -> Answer:
        """The answer to a chat by a function URL."""
        return self.service.begin(event("POST", "/v1/chat/completions", request, url=True), **options).result()


@contextmanager
def in_process(
    artifact: Path, *, num_pollers: int = 1, streams: bool = True, settings: ServerSettings | None = None
) -> Iterator[Function]:
    service = LambdaService()
    host = ModelHost(lambda: Engine.open(artifact, replace(RUNTIME, max_num_seqs=8)))
    host.wait()
    instance = LambdaInstance(host, settings or ServerSettings(shutdown_seconds=0.1))
    made: list[tuple[asyncio.AbstractEventLoop, LambdaRuntime]] = []
    with serving_api(service) as address:

        async def run() -> None:
            runtime = LambdaRuntime(RuntimeApi(address), instance, num_pollers, streams=streams)
            made.append((asyncio.get_running_loop(), runtime))
            await runtime.run()

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        try:
            until(lambda: service.waiting == num_pollers)
            yield Function(service, host.ready_engine())
        finally:
            for loop, runtime in made:
                loop.call_soon_threadsafe(runtime.stop)
            thread.join()
            host.close()


@pytest.fixture(scope="module")
def function(counting_folder: Path) -> Iterator[Function]:
    with in_process(counting_folder) as running_function:
        yield running_function


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": chat(), "max_tokens": 5, **fields}


def text_of(answer: Answer) -> str:
    """The text of a streamed answer that ends as it should."""
    *events, done, end = answer.body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in events]
    assert choices[-1]["finish_reason"] == "length"
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("make", [event, rest_event], ids=["function-url", "rest-api"])
def test_an_answer_is_streamed_with_a_prelude(function: Function, make: Any) -> None:
    options = {"url": True} if make is event else {}
    for path, body in (("/v1/models", None), ("/v1/chat/completions", asked())):
        answer = function.service.begin(make("POST" if body else "GET", path, body, **options)).result()
        assert answer.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
        assert answer.headers["lambda-runtime-function-response-mode"] == "streaming"
        assert answer.prelude["statusCode"] == 200
        assert answer.prelude["headers"]["content-type"] == "application/json"
        assert answer.prelude["headers"]["x-request-id"].startswith("invocation-")
        assert json.loads(answer.body)["object"] in ("list", "chat.completion")
        assert not answer.trailers
    streamed = function.service.begin(make("POST", "/v1/chat/completions", asked(stream=True), **options)).result()
    assert streamed.prelude["headers"]["content-type"].startswith("text/event-stream")
    assert len(text_of(streamed)) == 5


def test_the_first_piece_leaves_before_the_last_token_is_sampled(function: Function) -> None:
    with paced(function.engine) as steps:
        answer = function.stream(asked(stream=True, max_tokens=20))
    first = next(piece.at for piece in answer.pieces[1:] if b'"content":"' in piece.data and b'""' not in piece.data)
    assert len(text_of(answer)) == 20
    assert first < steps[-5]


def test_http_apis_and_load_balancers_get_whole_answers(function: Function) -> None:
    for made in (event, balancer_event):
        answer = function.service.begin(made("POST", "/v1/chat/completions", asked(stream=True))).result()
        assert "lambda-runtime-function-response-mode" not in answer.headers
        assert answer.document["body"].endswith("data: [DONE]\n\n")
    assert function.service.invoke(balancer_event("GET", "/v1/models"))["statusDescription"] == "200 OK"


def test_a_function_url_may_be_buffered(counting_folder: Path) -> None:
    with in_process(counting_folder, streams=False) as function:
        answer = function.service.invoke(event("GET", "/v1/models", url=True))
        assert json_of(answer)["data"][0]["id"] == MODEL


def test_refusals_have_the_form_of_the_api_inside_that_of_the_platform(function: Function) -> None:
    def refusal(sent: dict[str, Any], status: int) -> Any:
        answer = function.service.begin(sent).result()
        assert answer.prelude["statusCode"] == status
        return json.loads(answer.body)["error"]

    wrong = event("POST", "/v1/chat/completions", asked(temperature="hot"), url=True)
    assert refusal(wrong, 400)["param"] == "temperature"
    undecodable = {**event("POST", "/v1/chat/completions", url=True), "body": "a", "isBase64Encoded": True}
    assert refusal(undecodable, 400)["code"] == "invalid_event"
    large = event("POST", "/v1/chat/completions", asked(user="x" * (6 << 20)), url=True)
    assert refusal(large, 413)["code"] == "body_too_large"
    assert refusal(event("GET", "no-slash", url=True), 400)["param"] == "rawPath"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"Records": [{"eventSource": "aws:sqs", "body": "x"}]}, "aws:sqs"),
        ({"Records": [{"EventSource": "aws:sns"}]}, "aws:sns"),
        ({"source": "aws.s3", "detail-type": "Object Created"}, "aws.s3"),
        ({"requestContext": {"routeKey": "$connect", "connectionId": "x"}}, "unknown"),
        (None, "null"),
        ([], "an array"),
        ("text", "a text"),
        (7, "a number"),
    ],
)
def test_another_services_event_is_reported_and_the_instance_lives_on(function: Function, sent: Any, told: str) -> None:
    answer = function.service.begin(sent).result()
    assert answer.kind == "error"
    assert answer.headers["lambda-runtime-function-error-type"] == "Function.UnknownEvent"
    assert told in answer.document["errorMessage"]
    assert "check the function's trigger" in answer.document["errorMessage"]
    assert json.loads(function.stream(asked()).body)["usage"]["completion_tokens"] == 5


def test_a_warm_up_event_is_answered(function: Function) -> None:
    assert json_of(function.service.invoke({"warmer": True})) == {"status": "ready"}


def test_eight_events_share_steps_and_have_the_tokens_of_single_ones(counting_folder: Path) -> None:
    requests = [asked(messages=chat("x" * length), max_tokens=60, stream=True) for length in range(1, 9)]
    with in_process(counting_folder, num_pollers=8) as function:
        alone = [text_of(function.stream(request)) for request in requests]
        before = function.engine.metrics().decoding_rows
        with paced(function.engine, 0.015):
            begun = [
                function.service.begin(event("POST", "/v1/chat/completions", request, url=True)) for request in requests
            ]
            together = [text_of(each.result()) for each in begun]
        after = function.engine.metrics().decoding_rows
    assert together == alone
    rows, steps = after.total - before.total, after.num_observations - before.num_observations
    assert rows == 8 * 59  # the first token comes with the prompt
    assert rows / steps > 3  # one by one, it would be 1


def test_a_client_that_leaves_ends_its_generation(function: Function) -> None:
    with paced(function.engine):
        sent = event("POST", "/v1/chat/completions", asked(stream=True, max_tokens=400), url=True)
        answer = function.service.begin(sent, hangs_up=True).result()
        assert b"[DONE]" not in answer.body
        until(lambda: function.engine.num_live_requests == 0, 3)
    assert len(text_of(function.stream(asked(stream=True)))) == 5


def test_an_answer_ends_before_its_invocation_does(function: Function) -> None:
    with paced(function.engine):
        answer = function.stream(asked(stream=True, max_tokens=400), seconds=2.0)
        assert 5 < len(text_of(answer)) < 60
        whole = function.service.begin(event("POST", "/v1/chat/completions", asked(max_tokens=400)), seconds=2.0)
        assert json_of(whole.result().document)["choices"][0]["finish_reason"] == "length"


def test_a_fault_in_the_middle_of_an_answer_is_told_in_trailers(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwonnx.handlers.openai.completion_writer import CompletionWriter

    original, count = CompletionWriter._event, 0

    def broken(self: CompletionWriter, *given: Any) -> bytes:
        nonlocal count
        count += 1
        if count == 3:
            raise ZeroDivisionError("secret")
        return original(self, *given)

    monkeypatch.setattr(CompletionWriter, "_event", broken)
    answer = function.stream(asked(stream=True))
    assert b"[DONE]" not in answer.body
    assert answer.trailers["lambda-runtime-function-error-type"] == "Function.Fault"
    told = json.loads(base64.b64decode(answer.trailers["lambda-runtime-function-error-body"]))
    assert told["errorType"] == "Function.Fault"
    assert "secret" not in told["errorMessage"]


def test_an_answer_that_would_pass_the_platforms_limit_ends_with_length(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwonnx.handlers.functions.lambda_events import EventForm
    from qwonnx.handlers.http import answer_bytes

    monkeypatch.setattr(answer_bytes, "_RESERVED_BYTES", 1000)
    monkeypatch.setattr(EventForm, "max_bytes", property(lambda form: 6000))
    for stream in (False, True):
        sent = event("POST", "/v1/chat/completions", asked(stream=stream, max_tokens=400, ignore_eos=True))
        document = function.service.invoke(sent)
        assert len(json.dumps(document)) < 6000
        if stream:
            *events, done, _ = document["body"].split("\n\n")
            choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in events]
            assert (done, choices[-1]["finish_reason"]) == ("data: [DONE]", "length")
            assert 5 < len(events) < 40
        else:
            assert json_of(document)["choices"][0]["finish_reason"] == "length"
    until(lambda: function.engine.num_live_requests == 0)


def test_an_answer_goes_on_in_the_next_invocation(counting_folder: Path, tmp_path: Path) -> None:
    settings = ServerSettings(capsules=str(tmp_path), continuation_secret="of all instances", shutdown_seconds=0.1)
    request = asked(max_tokens=100, temperature=0)
    with in_process(counting_folder, settings=settings) as function:
        whole = json.loads(function.stream(request).body)["choices"][0]["message"]["content"]
        with paced(function.engine):
            first = json.loads(function.stream(request, seconds=3.0).body)
        second = json.loads(function.stream({**request, "continuation": first["continuation"]}).body)
    texts = [each["choices"][0]["message"]["content"] for each in (first, second)]
    assert all(texts)
    assert "".join(texts) == whole


def test_a_model_that_takes_longer_than_the_initialisation_is_waited_for(
    counting_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwonnx.handlers.functions import lambda_instance

    monkeypatch.setattr(lambda_instance, "_INITIALIZATION_SECONDS", 0.05)
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait(20)
        return Engine.open(counting_folder, RUNTIME)

    host = ModelHost(load)
    instance = LambdaInstance(host, ServerSettings())
    instance.initialize()
    assert not host.has_loaded

    async def models(seconds: float) -> Any:
        invocation = lambda_instance.Invocation("one", lambda: seconds)
        await instance.ready(invocation)
        read = read_event(event("GET", "/v1/models"))
        return await instance.whole(read, invocation, GivenRequest(b""))

    early = asyncio.run(models(0.55))
    assert json_of(early, 503)["error"]["code"] == "model_not_ready"
    threading.Timer(0.1, may_load.set).start()
    assert json_of(asyncio.run(models(20)))["data"][0]["id"] == MODEL
    host.close()


def test_sigterm_ends_the_process_after_its_answers(counting_folder: Path) -> None:
    with running(counting_folder, SLOW, AWS_LAMBDA_MAX_CONCURRENCY="3") as instance:
        sent = event("POST", "/v1/chat/completions", asked(stream=True, max_tokens=30), url=True)
        begun = [instance.service.begin(sent) for _ in range(2)]
        for each in begun:
            assert each.begun.wait(20)
        instance.process.send_signal(signal.SIGTERM)
        assert {len(text_of(each.result())) for each in begun} == {30}
        assert instance.process.wait(10) == 0


def test_an_answer_that_does_not_end_in_time_after_sigterm_is_well_formed(counting_folder: Path) -> None:
    with running(counting_folder, SLOW, QWONNX_SHUTDOWN_SECONDS="0.2") as instance:
        sent = event("POST", "/v1/chat/completions", asked(stream=True, max_tokens=400), url=True)
        begun = instance.service.begin(sent)
        assert begun.begun.wait(20)
        instance.process.send_signal(signal.SIGTERM)
        last = begun.result().body.decode().split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_closing"
        assert instance.process.wait(10) == 0


def test_sigterm_ends_a_process_that_still_loads(counting_folder: Path, tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        "from qwonnx.handlers import app\n"
        f"app.open_engine = lambda *given: (pathlib.Path({str(loading)!r}).touch(), time.sleep(60))\n"
    )
    with running(counting_folder, OURS, PYTHONPATH=str(tmp_path)) as instance:
        until(loading.exists)
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(10) == 0


@pytest.mark.parametrize(
    ("environment", "kind", "told"),
    [
        ({"QWONNX_ARTIFACT": "/nowhere"}, "Runtime.ManifestError", "/nowhere"),
        ({"AWS_LAMBDA_MAX_CONCURRENCY": "many"}, "Runtime.SettingsError", "AWS_LAMBDA_MAX_CONCURRENCY"),
        ({"QWONNX_INVOKE_MODE": "stream"}, "Runtime.SettingsError", "QWONNX_INVOKE_MODE"),
    ],
)
def test_a_failed_start_is_reported_and_ends_the_process(
    counting_folder: Path, environment: dict[str, str], kind: str, told: str
) -> None:
    with running(counting_folder, OURS, stderr=subprocess.PIPE, **environment) as instance:
        where, document = instance.service.errors.get(timeout=20)
        assert instance.process.wait(10) == 1
        assert instance.process.stderr is not None
        said = instance.process.stderr.read().decode()
    assert where == "init"
    assert told in document["errorMessage"]
    assert document["errorType"] == kind
    assert said.startswith("qwonnx: ")
    assert len(said.splitlines()) == 1


def test_an_unreachable_runtime_api_ends_the_process_with_one_line(counting_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with running(counting_folder, OURS, stderr=subprocess.PIPE, AWS_LAMBDA_RUNTIME_API=address) as instance:
        assert instance.process.wait(20) == 1
        assert instance.process.stderr is not None
        lines = instance.process.stderr.read().decode().splitlines()
    said = [line for line in lines if not line.startswith("INFO ")]
    assert len(said) == 1
    assert address in said[0]
    assert "AWS_LAMBDA_RUNTIME_API" in said[0]
