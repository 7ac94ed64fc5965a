"""Events of AWS Lambda that carry HTTP requests, and answers in their formats.

    function URL, API Gateway HTTP API     payload format 2.0
    API Gateway REST API                   payload format 1.0
    Application Load Balancer              like 1.0, with a status line; multi-value headers as its target group says

An event is untrusted: each field that is read is checked. What is none of these forms is not answered but reported to
Lambda, so that a queue or a stream, whose events came here by mistake, keeps its messages.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlencode

from starlette.types import Scope

from qwonnx.handlers.errors import ErrorKind, ServiceError, invalid

_MIB = 1 << 20
_MAX_NAME = 40  # characters of another service's name in a message
_OF_CONNECTIONS = ("connection", "keep-alive", "transfer-encoding", "content-length")
_TEXT_TYPES = ("text/", "application/json")


class EventForm(Enum):
    """Which service made an event."""

    FUNCTION_URL = "a function URL"
    HTTP_API = "API Gateway's HTTP API"
    REST_API = "API Gateway's REST API"
    LOAD_BALANCER = "an Application Load Balancer"

    @property
    def max_bytes(self) -> int:
        """Of a request's body, and of an answer that is sent as a whole."""
        return _MIB if self is EventForm.LOAD_BALANCER else 6 * _MIB


class UnknownEventError(Exception):
    """The event carries no HTTP request; the message says which trigger to check."""


class MalformedEventError(Exception):
    """An event of a known form with a field that is missing or has a wrong type.

    Args:
        answer: what its sender expects.
        refusal: 400.
    """

    def __init__(self, answer: AnswerForm, refusal: ServiceError) -> None:
        super().__init__(refusal.message)
        self.answer = answer
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the sender of an event expects.

    form: of the event.
    multi_value: headers must be lists.
    """

    form: EventForm
    multi_value: bool = False


@dataclass(frozen=True, slots=True)
class HttpEvent:
    """An event of a known form. Its fields are checked, except its body.

    answer: form of the event and of its answer.
    method, path, query: path as it was sent, percent-encoded or not; query encoded.
    headers: names in lower case, with values, in order.
    source: the client's address, or empty.
    stage: of an HTTP API, or empty.
    raw_body: as the event has it.
    is_encoded: raw_body is base64.
    """

    answer: AnswerForm
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    source: str
    stage: str
    raw_body: str
    is_encoded: bool

    @property
    def form(self) -> EventForm:
        return self.answer.form

    def body(self) -> bytes:
        """The request's body.

        Raises:
            ServiceError: 400, its base64 is wrong; 413, it is larger than the platform carries.
        """
        try:
            body = base64.b64decode(self.raw_body, validate=True) if self.is_encoded else self.raw_body.encode()
        except (binascii.Error, ValueError) as error:
            message = "the event's body is not base64 or not Unicode text: send it as the gateway got it"
            raise invalid(message, code="invalid_event") from error
        if len(body) > self.form.max_bytes:
            message = (
                f"the body has more than {self.form.max_bytes} bytes, which {self.form.value} cannot carry: "
                "shorten the conversation"
            )
            raise ServiceError(ErrorKind.TOO_LARGE, 413, message, code="body_too_large")
        return body

    def scope(self) -> Scope:
        """The request as an ASGI scope."""
        host, _, port = self.header("host").partition(":")
        headers = [(name.encode("latin-1", "replace"), _header_bytes(value)) for name, value in self.headers]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.header("x-forwarded-proto") or "https",
            "path": unquote(self.path),
            "raw_path": self.path.encode(),
            "query_string": self.query.encode(),
            "root_path": "",
            "headers": headers,
            "client": (self.source, 0),
            "server": (host or "lambda", int(port) if port.isdecimal() and len(port) < 6 else 443),
        }

    def header(self, name: str) -> str:
        """The first header of this name; empty without one."""
        return next((value for given, value in self.headers if given == name), "")


def read_event(event: Any) -> HttpEvent:
    """The request in an event.

    Raises:
        UnknownEventError: it is none of the known forms.
        MalformedEventError: it is one of them, and a field is missing or has a wrong type.
    """
    if not isinstance(event, dict):
        raise UnknownEventError(_unknown(f"it is {_kind_of(event)}"))
    context = event.get("requestContext")
    if not isinstance(context, dict):
        raise UnknownEventError(_unknown(_service_of(event)))
    http = context.get("http")
    if event.get("version") == "2.0" and isinstance(http, dict):
        domain = context.get("domainName")
        # A custom domain is an HTTP API's: function URLs have none.
        is_url = isinstance(domain, str) and ".lambda-url." in domain
        answer = AnswerForm(EventForm.FUNCTION_URL if is_url else EventForm.HTTP_API)
    elif isinstance(context.get("elb"), dict):
        answer = AnswerForm(EventForm.LOAD_BALANCER, multi_value=event.get("multiValueHeaders") is not None)
    elif "httpMethod" in event:
        answer = AnswerForm(EventForm.REST_API)
    else:
        raise UnknownEventError(_unknown(_service_of(event)))
    try:
        if isinstance(http, dict) and answer.form in (EventForm.FUNCTION_URL, EventForm.HTTP_API):
            return _format_2(answer, event, context, http)
        return _format_1(answer, event, context)
    except ServiceError as error:
        raise MalformedEventError(answer, error) from error


def _format_2(
    answer: AnswerForm, event: Mapping[str, Any], context: Mapping[str, Any], http: Mapping[str, Any]
) -> HttpEvent:
    headers = _headers(event.get("headers"))
    cookies = event.get("cookies") or []
    if not isinstance(cookies, list) or not all(isinstance(cookie, str) for cookie in cookies):
        raise _malformed("cookies")
    if cookies and all(name != "cookie" for name, _ in headers):
        headers = (*headers, ("cookie", "; ".join(cookies)))
    stage = context.get("stage")
    return HttpEvent(
        answer=answer,
        method=_text(http, "method", "requestContext.http.method").upper(),
        path=_path(event, "rawPath"),
        query=_optional_text(event, "rawQueryString"),
        headers=headers,
        source=_optional_text(http, "sourceIp"),
        stage=stage if isinstance(stage, str) and stage != "$default" else "",
        raw_body=_optional_text(event, "body"),
        is_encoded=event.get("isBase64Encoded") is True,
    )


def _format_1(answer: AnswerForm, event: Mapping[str, Any], context: Mapping[str, Any]) -> HttpEvent:
    identity = context.get("identity")
    multiple = event.get("multiValueHeaders")
    headers = _headers(event.get("headers") if multiple is None else multiple)
    is_balancer = answer.form is EventForm.LOAD_BALANCER
    source = _optional_text(identity, "sourceIp") if isinstance(identity, dict) else ""
    if is_balancer:
        source = next((value for name, value in headers if name == "x-forwarded-for"), "").rpartition(",")[2].strip()
    return HttpEvent(
        answer=answer,
        method=_text(event, "httpMethod", "httpMethod").upper(),
        path=_path(event, "path"),
        query=_query(event, is_encoded=is_balancer),
        headers=headers,
        source=source,
        stage="",
        raw_body=_optional_text(event, "body"),
        is_encoded=event.get("isBase64Encoded") is True,
    )


def answer_document(to: AnswerForm, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> dict[str, Any]:
    """A whole answer in the format of its event.

    Args:
        to: the sender of the event.
        status: of HTTP.
        headers: in order; a name may come several times.
        body: any bytes; what is not text is sent as base64.
    """
    given = _sent(headers)
    text = _as_text(body, dict(given).get("content-type", ""))
    document: dict[str, Any] = {
        "statusCode": status,
        "body": base64.b64encode(body).decode() if text is None else text,
        "isBase64Encoded": text is None,
    }
    if to.form is EventForm.LOAD_BALANCER:
        document["statusDescription"] = status_line(status)
    if to.multi_value:
        lists: dict[str, list[str]] = {}
        for name, value in given:
            lists.setdefault(name, []).append(value)
        document["multiValueHeaders"] = lists
        return document
    return document | prelude(to, status, given)


def prelude(to: AnswerForm, status: int, headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Status and headers of an answer whose body follows, as a streamed response begins."""
    single: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in _sent(headers):
        if name == "set-cookie":
            cookies.append(value)
        else:
            single[name] = f"{single[name]}, {value}" if name in single else value
    document: dict[str, Any] = {"statusCode": status, "headers": single}
    if cookies and to.form in (EventForm.FUNCTION_URL, EventForm.HTTP_API):
        document["cookies"] = cookies
    elif cookies:
        single["set-cookie"] = cookies[-1]  # one at most: qwonnx sets none
    return document


def status_line(status: int) -> str:
    """The status as a load balancer wants it: "200 OK"."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def carried_bytes(text: bytes) -> int:
    """Bytes that a part of a body takes in an answer document, whichever client writes that.

    Amazon's client for Python escapes characters beyond ASCII with some versions, so they count as escaped.
    """
    return len(json.dumps(text.decode("utf-8", "replace"))) - 2


def _sent(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers of an answer, without those of a connection, which the platform owns."""
    return [(name.lower(), value) for name, value in headers if name.lower() not in _OF_CONNECTIONS]


def _as_text(body: bytes, content_type: str) -> str | None:
    if not content_type.startswith(_TEXT_TYPES) and body:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _headers(given: Any) -> tuple[tuple[str, str], ...]:
    """Headers of a dict whose values are texts or lists of texts."""
    if given is None:
        return ()
    if not isinstance(given, dict):
        raise _malformed("headers")
    found: list[tuple[str, str]] = []
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(name, str) or not isinstance(value, str):
                raise _malformed("headers")
            found.append((name.lower(), value))
    return tuple(found)


def _header_bytes(value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")


def _query(event: Mapping[str, Any], *, is_encoded: bool) -> str:
    """The query of format 1.0. A load balancer passes names and values as they were sent, API Gateway decoded ones."""
    multiple = event.get("multiValueQueryStringParameters")
    given = event.get("queryStringParameters") if multiple is None else multiple
    if given is None:
        return ""
    if not isinstance(given, dict):
        raise _malformed("queryStringParameters")
    pairs = [
        (name, value) for name, values in given.items() for value in (values if isinstance(values, list) else [values])
    ]
    if not all(isinstance(name, str) and isinstance(value, str) for name, value in pairs):
        raise _malformed("queryStringParameters")
    try:
        return "&".join(f"{name}={value}" for name, value in pairs) if is_encoded else urlencode(pairs)
    except UnicodeEncodeError as error:
        raise _malformed("queryStringParameters") from error


def _path(event: Mapping[str, Any], name: str) -> str:
    path = _text(event, name, name)
    if not path.startswith("/"):
        raise _malformed(name)
    return path


def _text(document: Mapping[str, Any], name: str, where: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value or not _is_unicode(value):
        raise _malformed(where)
    return value


def _optional_text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or (name != "body" and not _is_unicode(value)):
        raise _malformed(name)
    return value


def _is_unicode(text: str) -> bool:
    """Whether it has no lone half of a character, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _malformed(field: str) -> ServiceError:
    message = f"the event's {field} is missing or malformed: check what sends it"
    return invalid(message, field, "invalid_event")


def _unknown(what: str) -> str:
    return (
        f"the event carries no HTTP request ({what}): check the function's trigger, which must be a function URL, "
        "API Gateway or an Application Load Balancer"
    )


def _service_of(event: Mapping[str, Any]) -> str:
    """Whose event it is, as far as it says so."""
    records = event.get("Records")
    first = records[0] if isinstance(records, list) and records and isinstance(records[0], dict) else {}
    source = first.get("eventSource") or first.get("EventSource") or event.get("source") or event.get("eventSource")
    if not isinstance(source, str) or not source:
        return "its service is unknown"
    return f"it is of {_ascii(source)[:_MAX_NAME]}"


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _kind_of(value: Any) -> str:
    return {type(None): "null", list: "an array", str: "a text", bool: "a boolean"}.get(type(value), "a number")
