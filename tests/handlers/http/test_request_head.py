"""Requests as they are read from a connection."""

from __future__ import annotations

from typing import Any

import h11
import pytest

from qwonnx.handlers.http.request_head import RequestReader

pytestmark = pytest.mark.fast


def _events(data: bytes) -> list[Any]:
    reader = RequestReader(h11.SERVER)
    reader.receive_data(data)
    events: list[Any] = []
    while not events or events[-1] not in (h11.NEED_DATA, h11.PAUSED):
        events.append(reader.next_event())
    return events


@pytest.mark.parametrize(
    ("target", "settled"),
    [
        (b"/v1/models?a=b", b"/v1/models?a=b"),
        (b"http://host/v1/models", b"/v1/models"),
        (b"HTTP://user@host:80/v1/models?a=http://b/c", b"/v1/models?a=http://b/c"),
        (b"https://[::1]:80/", b"/"),
        (b"http://host", b"/"),
        (b"http://host?a", b"/?a"),
        (b"*", b"*"),
        (b"//host/path", b"//host/path"),
    ],
)
def test_a_target_in_absolute_form_is_its_path(target: bytes, settled: bytes) -> None:
    request = _events(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % target)[0]
    assert (request.target, request.method, dict(request.headers)) == (settled, b"GET", {b"host": b"x"})


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        (b"content-length: 0\r\n", False),
        (b"transfer-encoding: chunked\r\n", False),
        (b"content-length: 3\r\nTransfer-Encoding: chunked\r\n", True),
    ],
)
def test_a_request_with_both_lengths_is_the_last(headers: bytes, closes: bool) -> None:
    request = _events(b"POST / HTTP/1.1\r\nhost: x\r\n%s\r\n0\r\n\r\n" % headers)[0]
    assert ((b"connection", b"close") in request.headers) is closes


def test_many_tiny_chunks_are_refused_and_ordinary_ones_are_not() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with pytest.raises(h11.RemoteProtocolError, match="too small"):
        _events(head + b"1\r\na\r\n" * 5000)
    assert len(_events(head + b"1\r\na\r\n" * 4000)) == 4002
    assert len(_events(head + b"40\r\n%s\r\n" % (b"a" * 64) * 20_000)) == 20_002
