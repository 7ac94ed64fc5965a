"""Lambda's side of the Runtime API on a loopback port: hands out events, takes answers whole or in pieces."""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
API = "/2018-06-01/runtime"
AMAZONS = [sys.executable, "-m", "awslambdaric"]
OURS = [sys.executable, "-m", "qwonnx.handlers.functions.lambda_runtime"]
_SECONDS = 40


@dataclass
class Piece:
    """A piece of a streamed answer. at: time.monotonic()."""

    at: float
    data: bytes


@dataclass
class Answer:
    """What the function sent for one invocation.

    kind: "response" or "error".
    document: JSON of a whole answer or of an error; None for a streamed one.
    pieces: of a streamed answer, its prelude among them.
    headers, trailers: of the call, names in lower case.
    """

    kind: str
    document: Any = None
    pieces: list[Piece] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def prelude(self) -> Any:
        head, end, _ = self._bytes().partition(bytes(8))
        assert end, "a prelude ends with eight NULs"
        return json.loads(head)

    @property
    def body(self) -> bytes:
        return self._bytes().partition(bytes(8))[2]

    def _bytes(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)


@dataclass
class Invoked:
    """An invocation that waits for its answer."""

    name: str
    seconds: float
    event: bytes
    answer: queue.Queue[Answer] = field(default_factory=queue.Queue)
    begun: threading.Event = field(default_factory=threading.Event)  # the first piece after the prelude has come
    hangs_up: bool = False  # after the first such piece

    def result(self) -> Answer:
        return self.answer.get(timeout=_SECONDS)


class LambdaService:
    """Events and answers of one instance."""

    def __init__(self) -> None:
        self.events: queue.Queue[Invoked] = queue.Queue()
        self.errors: queue.Queue[tuple[str, Any]] = queue.Queue()  # "init" or "restore", document
        self.waiting = 0  # calls of invocation/next that have no event yet
        self.snapshot = threading.Semaphore(0)  # restore/next waits for it
        self.restoring = threading.Event()
        self._live: dict[str, Invoked] = {}
        self._lock = threading.Lock()
        self._count = 0

    def begin(self, event: Any, *, seconds: float = 900.0, hangs_up: bool = False) -> Invoked:
        """Invoke the function; it has this much time."""
        with self._lock:
            self._count += 1
            invoked = Invoked(f"invocation-{self._count}", seconds, json.dumps(event).encode(), hangs_up=hangs_up)
            self._live[invoked.name] = invoked
        self.events.put(invoked)
        return invoked

    def invoke(self, event: Any, *, seconds: float = 900.0) -> dict[str, Any]:
        """The whole answer to an event."""
        answer = self.begin(event, seconds=seconds).result()
        assert answer.kind == "response", answer
        assert isinstance(answer.document, dict), answer
        return answer.document

    def of(self, name: str) -> Invoked:
        return self._live[name]

    def count_waiting(self, change: int) -> None:
        with self._lock:
            self.waiting += change


def _request_handler(service: LambdaService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == f"{API}/restore/next":
                service.restoring.set()
                service.snapshot.acquire()
                self._reply(200, b"")
                return
            assert self.path == f"{API}/invocation/next"
            service.count_waiting(1)
            invoked = service.events.get()
            service.count_waiting(-1)
            self._reply(
                200,
                invoked.event,
                {
                    "Lambda-Runtime-Aws-Request-Id": invoked.name,
                    "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invoked.seconds) * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-north-1:1:function:qwonnx",
                    "Lambda-Runtime-Trace-Id": f"Root=1-{invoked.name}",
                },
            )

        def do_POST(self) -> None:
            path = self.path.removeprefix(API + "/").split("/")
            if path[0] != "invocation":
                service.errors.put((path[0], json.loads(self._whole())))
                self._reply(202, b"")
                return
            invoked = service.of(path[1])
            answer = Answer(path[2], headers={name.lower(): value for name, value in self.headers.items()})
            if self.headers.get("Lambda-Runtime-Function-Response-Mode") == "streaming":
                if not self._read_pieces(invoked, answer):
                    return
            else:
                answer.document = json.loads(self._whole())
            invoked.answer.put(answer)
            self._reply(202, b"")

        def _read_pieces(self, invoked: Invoked, answer: Answer) -> bool:
            """All chunks; False after hanging up."""
            assert self.headers["Transfer-Encoding"] == "chunked"
            while size := int(self.rfile.readline(), 16):
                answer.pieces.append(Piece(time.monotonic(), self.rfile.read(size)))
                assert self.rfile.readline() == b"\r\n"
                if answer.body:
                    invoked.begun.set()
                    if invoked.hangs_up:
                        self.close_connection = True
                        self.connection.close()
                        invoked.answer.put(answer)
                        return False
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                answer.trailers[name.lower()] = value.strip()
            return True

        def _whole(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the function's process was killed
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def serving_api(service: LambdaService) -> Iterator[str]:
    """The address of a service's Runtime API."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _request_handler(service)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@dataclass(frozen=True)
class Instance:
    """A running function."""

    service: LambdaService
    process: subprocess.Popen[bytes]


@contextmanager
def running(artifact: Path, command: list[str], *, stderr: Any = None, **environment: str) -> Iterator[Instance]:
    """An instance of the function, as Lambda starts one."""
    service = LambdaService()
    with serving_api(service) as address:
        variables = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": address,
            "AWS_LAMBDA_FUNCTION_NAME": "qwonnx",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_LOG_GROUP_NAME": "group",
            "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
            "QWONNX_ARTIFACT": str(artifact),
            "QWONNX_NUM_THREADS": "1",
            "QWONNX_MAX_MODEL_LEN": "512",
            **environment,
        }
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            yield Instance(service, process)
        finally:
            process.kill()
            process.communicate()


def event(
    method: str, path: str, body: object = None, *, encoded: bool = False, url: bool = False, **headers: str
) -> dict[str, Any]:
    """An event of API Gateway's HTTP API, or of a function URL, which has the same format with another domain."""
    domain = "abc.lambda-url.eu-north-1.on.aws" if url else "abc.execute-api.eu-north-1.amazonaws.com"
    document: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": domain, "content-type": "application/json", "x-forwarded-proto": "https", **headers},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "abc",
            "domainName": domain,
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "1.2.3.4", "userAgent": "t"},
            "requestId": "id",
            "stage": "$default",
            "time": "01/Jan/2026:00:00:00 +0000",
            "timeEpoch": 1767225600000,
        },
        "isBase64Encoded": encoded,
    }
    return document | _body(body, encoded=encoded)


def rest_event(method: str, path: str, body: object = None, *, encoded: bool = False) -> dict[str, Any]:
    """An event of API Gateway's REST API, whose path has no stage."""
    document = {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {"Host": "abc.execute-api.eu-north-1.amazonaws.com", "Content-Type": "application/json"},
        "multiValueHeaders": {
            "Host": ["abc.execute-api.eu-north-1.amazonaws.com"],
            "Content-Type": ["application/json"],
        },
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "requestContext": {"stage": "v1", "path": f"/v1{path}", "identity": {"sourceIp": "1.2.3.4"}},
        "body": None,
        "isBase64Encoded": encoded,
    }
    return document | _body(body, encoded=encoded)


def balancer_event(method: str, path: str, body: object = None, *, multi_value: bool = False) -> dict[str, Any]:
    """An event of an Application Load Balancer."""
    headers = {"host": "lb-1.eu-north-1.elb.amazonaws.com", "content-type": "application/json"}
    headers |= {"x-forwarded-for": "9.9.9.9, 1.2.3.4", "x-forwarded-proto": "https", "x-forwarded-port": "443"}
    document: dict[str, Any] = {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:eu-north-1:1:targetgroup/q/1"}},
        "httpMethod": method,
        "path": path,
        "body": "",
        "isBase64Encoded": False,
    }
    if multi_value:
        document["multiValueQueryStringParameters"] = {}
        document["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
    else:
        document["queryStringParameters"] = {}
        document["headers"] = headers
    return document | _body(body, encoded=False)


def json_of(answer: dict[str, Any], status: int = 200) -> Any:
    """The JSON of an answer's body."""
    assert answer["statusCode"] == status, answer
    lists = answer.get("multiValueHeaders")
    content_type = answer["headers"]["content-type"] if lists is None else lists["content-type"][0]
    assert content_type == "application/json"
    assert answer["isBase64Encoded"] is False
    return json.loads(answer["body"])


def _body(body: object, *, encoded: bool) -> dict[str, Any]:
    if body is None:
        return {}
    text = json.dumps(body)
    return {"body": base64.b64encode(text.encode()).decode() if encoded else text}
