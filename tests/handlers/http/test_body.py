"""Bodies of requests: limits for one body and for all together; a body that is not JSON is not read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http import body
from qwonnx.handlers.http.body_budget import BodyBudget

pytestmark = pytest.mark.fast

JSON = {"content-type": "application/json"}


class Sender:
    """A client that sends pieces of a body, and counts those that were taken."""

    def __init__(self, pieces: Sequence[bytes] = (), *, leaves: bool = False, stops: bool = False) -> None:
        self._pieces = list(pieces)
        self._leaves = leaves
        self._stops = stops
        self.taken = 0
        self.held = 0  # bytes of the budget, while the body was used

    async def receive(self) -> Message:
        self.taken += 1
        if self._stops and not self._pieces:
            await asyncio.sleep(60)
        if self._leaves:
            return {"type": "http.disconnect"}
        piece = self._pieces.pop(0) if self._pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or self._stops}

    def read(
        self,
        max_bytes: int,
        headers: dict[str, str] | None = None,
        *,
        seconds: float = 5,
        budget: BodyBudget | None = None,
    ) -> bytes:
        pairs = [(name.encode(), value.encode()) for name, value in (JSON if headers is None else headers).items()]
        request = Request({"type": "http", "headers": pairs}, self.receive)
        limits = body.BodyLimits(max_bytes, seconds, budget or BodyBudget(0))

        async def read() -> bytes:
            async with body.received(request, limits) as data:
                self.held = limits.budget.num_taken
                return bytes(data)

        return asyncio.run(read())


def test_pieces_are_put_together_up_to_the_limit_itself() -> None:
    assert Sender([b"ab", b"", b"cd"]).read(4) == b"abcd"
    assert Sender().read(1) == b""


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", " application/json ;a=b"]
)
def test_a_media_type_may_have_parameters_and_may_be_missing(media_type: str) -> None:
    assert Sender([b"{}"]).read(9, {"content-type": media_type}) == b"{}"
    assert Sender([b"{}"]).read(9, {}) == b"{}"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_media_type_is_refused_before_anything_is_read(media_type: str) -> None:
    sender = Sender([b"{}"])
    with pytest.raises(ServiceError) as refusal:
        sender.read(9, {"content-type": media_type})
    assert (refusal.value.kind, refusal.value.status, refusal.value.code) == (ErrorKind.INVALID, 415, "invalid_type")
    assert sender.taken == 0


@pytest.mark.parametrize("declared", ["5", "9" * 400])
def test_a_declared_size_over_the_limit_is_refused_before_anything_is_read(declared: str) -> None:
    sender = Sender([b"abcde"])
    with pytest.raises(ServiceError) as refusal:
        sender.read(4, {**JSON, "content-length": declared})
    assert (refusal.value.kind, refusal.value.status, refusal.value.code) == (
        ErrorKind.TOO_LARGE,
        413,
        "body_too_large",
    )
    assert refusal.value.headers == {"connection": "close"}
    assert "more than 4 bytes" in refusal.value.message
    assert sender.taken == 0


@pytest.mark.parametrize("declared", [None, "2", "-1", "many"])
def test_a_body_that_grows_over_the_limit_is_read_no_further(declared: str | None) -> None:
    sender = Sender([b"abc", b"de", b"f", b"g"])
    with pytest.raises(ServiceError) as refusal:
        sender.read(4, JSON if declared is None else {**JSON, "content-length": declared})
    assert refusal.value.status == 413
    assert sender.taken == 2


def test_a_body_that_does_not_come_in_time_is_a_408() -> None:
    budget = BodyBudget(1 << 20)
    with pytest.raises(ServiceError, match=r"within 0\.05 seconds") as refusal:
        Sender([b"x" * 100_000], stops=True).read(1 << 20, seconds=0.05, budget=budget)
    assert (refusal.value.kind, refusal.value.status, refusal.value.code) == (ErrorKind.TIMEOUT, 408, "body_timeout")
    assert refusal.value.headers == {"connection": "close"}
    assert budget.num_taken == 0


def test_all_bodies_together_have_a_budget_and_small_ones_do_not_need_it() -> None:
    budget = BodyBudget(100_000)
    sender = Sender([b"x" * 60_000] * 2)
    assert len(sender.read(1 << 20, budget=budget)) == 120_000
    assert sender.held == 120_000 - (64 << 10)
    assert budget.num_taken == 0
    assert budget.take(90_000)
    assert len(Sender([b"x" * 60_000]).read(1 << 20, budget=budget)) == 60_000
    with pytest.raises(ServiceError, match="try again later") as refusal:
        Sender([b"x" * 60_000] * 2).read(1 << 20, budget=budget)
    assert (refusal.value.kind, refusal.value.status) == (ErrorKind.UNAVAILABLE, 503)
    assert refusal.value.headers == {"retry-after": "1"}
    assert budget.num_taken == 90_000
    budget.give_back(90_000)
    with pytest.raises(ClientDisconnect):
        Sender(leaves=True).read(1 << 20, budget=budget)
    assert budget.num_taken == 0


def test_a_client_that_leaves_is_no_body() -> None:
    with pytest.raises(ClientDisconnect):
        Sender(leaves=True).read(4)
