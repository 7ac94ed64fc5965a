"""Limits of requests and tokens: never more in flight than allowed, and the tokens of a minute within 5%."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import meter
from qwonnx.handlers.http.api import Api, Apis
from qwonnx.handlers.http.api_key import RequireApiKey
from qwonnx.handlers.http.api_keys import KeyRing
from qwonnx.handlers.http.meter import metering
from qwonnx.handlers.http.request_limits import KeyAccount, RequestLimits
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.fakes import output

pytestmark = pytest.mark.fast


def _speak(error: ServiceError) -> Response:
    return PlainTextResponse(error.code or "", error.status, error.headers)


APIS = Apis([Api("/v1", (), _speak, "")])
NAMES = ("a", "b", "c")


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Held:
    """An application whose answers end when the test says so."""

    def __init__(self) -> None:
        self.running: list[tuple[str, asyncio.Future[None]]] = []
        self.most: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["qwonnx.api_key"].name if "qwonnx.api_key" in scope else ""
        ending = asyncio.get_running_loop().create_future()
        self.running.append((name, ending))
        for each in (name, "all"):
            count = sum(each in (one, "all") for one, _ in self.running)
            self.most[each] = max(self.most.get(each, 0), count)
        try:
            await ending
            await PlainTextResponse("done")(scope, receive, send)
        finally:
            self.running.remove((name, ending))


class Asked:
    """One request to an application."""

    def __init__(self, app: ASGIApp, key: str, method: str = "POST", **headers: str) -> None:
        self.messages: list[Message] = []
        given = {"authorization": f"Bearer {key}", **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": "/v1/x",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
        }
        self.task = asyncio.ensure_future(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            self.messages.append(message)

        with metering():
            await app(scope, receive, send)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}


def ring_of(folder: Path, text: str, **options: Any) -> KeyRing:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return KeyRing(ServerSettings(api_keys=str(path), **options))


def limited(inside: ASGIApp, ring: KeyRing, clock: Clock, **options: Any) -> ASGIApp:
    return RequireApiKey(RequestLimits(inside, apis=APIS, clock=clock, **options), ring=ring, apis=APIS)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "end", "fail", "leave"]), st.integers(0, 20), st.sampled_from(NAMES)),
        max_size=60,
    ),
    most=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_never_more_are_in_flight_than_allowed_and_every_place_comes_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]], most: int
) -> None:
    folder = tmp_path_factory.mktemp("ring")
    text = "a: key-a max-requests=1\nb: key-b max-requests=3\nc: key-c tokens-per-minute=1000\n"

    async def main() -> None:
        inside = Held()
        app = limited(inside, ring_of(folder, text), Clock(), max_in_flight=most)
        asked: list[Asked] = []
        for action, which, name in steps:
            if action == "ask":
                asked.append(Asked(app, f"key-{name}"))
            elif action == "leave" and asked:
                asked[which % len(asked)].task.cancel()
            elif inside.running:
                ending = inside.running[which % len(inside.running)][1]
                if not ending.done():
                    ending.set_result(None) if action == "end" else ending.set_exception(ZeroDivisionError())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for _, ending in inside.running:
            if not ending.done():
                ending.set_result(None)
        await asyncio.gather(*(each.task for each in asked), return_exceptions=True)
        assert inside.most.get("a", 0) <= 1
        assert inside.most.get("b", 0) <= 3
        assert inside.most.get("all", 0) <= most
        assert not inside.running
        # Whatever ended however, all places are free again.
        last = [Asked(app, "key-b") for _ in range(min(3, most))]
        await asyncio.sleep(0.001)
        assert len(inside.running) == len(last)
        for each in last:
            each.task.cancel()
        await asyncio.gather(*(each.task for each in last), return_exceptions=True)

    asyncio.run(main())


def test_a_refusal_has_openais_headers_and_says_when_to_come_again(tmp_path: Path) -> None:
    async def main() -> None:
        inside, clock = Held(), Clock()
        ring = ring_of(tmp_path, "a: key-a max-requests=1 tokens-per-minute=1000\nb: key-b\n")
        app = limited(inside, ring, clock)
        first = Asked(app, "key-a")
        await asyncio.sleep(0)
        second, reading, other = Asked(app, "key-a"), Asked(app, "key-a", "GET"), Asked(app, "key-b")
        await asyncio.sleep(0.001)
        assert second.status == 429
        assert second.headers["retry-after"] == "1"
        assert {name: value for name, value in second.headers.items() if "ratelimit" in name} == {
            "x-ratelimit-limit-requests": "1",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "1000",
            "x-ratelimit-reset-tokens": "1m0s",
        }
        assert len(inside.running) == 3  # the first, what reads, and another key's
        for _, ending in inside.running:
            ending.set_result(None)
        await asyncio.gather(first.task, reading.task, other.task)
        assert first.status == reading.status == other.status == 200
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        assert not any("ratelimit" in name for name in (*other.headers, *reading.headers))

    asyncio.run(main())


def test_used_tokens_are_charged_as_they_come_and_a_key_that_has_used_them_waits(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()

        async def uses(scope: Scope, receive: Receive, send: Send) -> None:
            answer = meter.opened([1, 2, 3], 0)
            assert answer is not None
            answer.took(output("x", 1, generated=293))  # and 7 of the prompt
            again = meter.opened([1, 2, 3], 0)  # a second answer to the same prompt
            assert again is not None
            again.took(output("x", 1, generated=200))
            await PlainTextResponse("done")(scope, receive, send)

        app = limited(uses, ring_of(tmp_path, "a: key-a tokens-per-minute=1000\n"), clock)
        statuses, left = [], []
        for _ in range(4):
            asked = Asked(app, "key-a")
            await asked.task
            statuses.append(asked.status)
            left.append(asked.headers["x-ratelimit-remaining-tokens"])
            last = asked
            clock.now += 10
        assert statuses == [200, 200, 429, 429]
        assert left == ["500", "0", "0", "0"]
        assert 30 <= int(last.headers["retry-after"]) <= 31
        clock.now += float(last.headers["retry-after"]) - 10
        asked = Asked(app, "key-a")
        await asked.task
        assert asked.status == 200

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [1, 8, 16])
def test_the_tokens_of_every_minute_are_within_5_percent_of_the_limit(seed: int, at_once: int) -> None:
    """A key that always asks for more, with requests of changing sizes and times."""
    chance, limit = random.Random(seed), 60_000
    account, now, used = KeyAccount(), 0.0, []
    running: dict[int, tuple[float, float, int]] = {}  # began, seconds, tokens
    number = 0

    def tokens_of(name: int) -> int:
        began, seconds, tokens = running[name]
        return round(tokens * min(1.0, (now - began) / seconds))

    reported: dict[int, int] = {}
    while now < 600:
        now += 0.05
        for name, (began, seconds, _) in list(running.items()):
            came = tokens_of(name) - reported[name]
            reported[name] += came
            used.append((now, came))
            if now >= began + seconds:
                account.end(name, now, limit)
                del running[name]
        while len(running) < at_once and account.seconds_until_below(limit, now) == 0:
            number += 1
            running[number] = (now, chance.uniform(0.2, 4), chance.randrange(100, 1200))
            reported[number] = 0
            account.begin(number, lambda name=number: tokens_of(name), 400)  # type: ignore[misc]
    demand = at_once * 650 / 2.1 * 60  # tokens a minute, without a limit
    for minute in range(1, 10):
        total = sum(tokens for at, tokens in used if 60 * (minute - 1) < at <= 60 * minute)
        assert total <= 1.05 * limit
        assert total >= 0.95 * limit or demand < limit


def test_a_request_of_many_minutes_tokens_is_a_debt_of_many_minutes() -> None:
    account, limit = KeyAccount(), 600
    account.begin(1, lambda: 6000, 40)
    account.end(1, 100.0, limit)
    assert account.seconds_until_below(limit, 100.0) == pytest.approx(540, abs=1)
    assert account.seconds_until_below(limit, 400.0) == pytest.approx(240, abs=1)
    assert account.seconds_until_below(limit, 641.0) == 0
    assert account.seconds_until_unused(641.0, limit) == pytest.approx(59, abs=0.1)


def test_a_large_request_in_flight_holds_others_until_it_ends_and_not_for_as_long_as_its_reserve() -> None:
    account, limit = KeyAccount(), 600
    account.begin(1, lambda: 0, 40_000)
    assert account.seconds_until_below(limit, 100.0) == 1
    account.end(1, 101.0, limit)
    assert account.seconds_until_below(limit, 101.0) == 0


def test_an_account_outlives_the_change_of_a_secret(tmp_path: Path) -> None:
    async def main() -> None:
        inside = Held()
        ring = ring_of(tmp_path, "a: old max-requests=1\n")
        app = limited(inside, ring, Clock())
        first = Asked(app, "old")
        await asyncio.sleep(0)
        ring_of(tmp_path, "a: new max-requests=1\n")
        assert ring.reload()
        second, third = Asked(app, "new"), Asked(app, "old")
        await asyncio.sleep(0.001)
        assert (second.status, third.status) == (429, 401)
        inside.running[0][1].set_result(None)
        await first.task

    asyncio.run(main())


def test_a_client_that_has_its_answer_may_ask_again_while_the_server_still_tidies_up(tmp_path: Path) -> None:
    async def main() -> None:
        tidied = asyncio.Event()

        async def answers(scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("done")(scope, receive, send)
            await tidied.wait()

        app = limited(answers, ring_of(tmp_path, "a: key-a max-requests=1\n"), Clock(), max_in_flight=1)
        asked = [Asked(app, "key-a")]
        await asyncio.sleep(0.001)
        asked.append(Asked(app, "key-a"))
        await asyncio.sleep(0.001)
        assert [each.status for each in asked] == [200, 200]
        tidied.set()
        await asyncio.gather(*(each.task for each in asked))
        asked = [Asked(app, "key-a")]
        await asked[0].task
        assert asked[0].status == 200

    asyncio.run(main())


def test_without_keys_all_clients_share_one_limit() -> None:
    async def main() -> None:
        inside = Held()
        app = RequestLimits(inside, apis=APIS, max_in_flight=2)
        asked = [Asked(app, "none") for _ in range(4)]
        await asyncio.sleep(0.001)
        assert [each.status for each in asked] == [None, None, 429, 429]
        assert asked[3].headers["retry-after"] == "1"
        for _, ending in inside.running:
            ending.set_result(None)
        await asyncio.gather(*(each.task for each in asked))

    asyncio.run(main())
