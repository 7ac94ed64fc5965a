"""A run over work: every request has one row, groups wait for their first, and nothing is lost when it ends early."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from qwonnx.handlers.app import create_app
from qwonnx.handlers.batch.errors import BatchError
from qwonnx.handlers.batch.lines import read_lines, unique
from qwonnx.handlers.batch.results import Results
from qwonnx.handlers.batch.run import BatchRun, Progress
from qwonnx.handlers.batch.work import Failure, Refused, Work
from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.serving import MODEL, RUNTIME

pytestmark = pytest.mark.fast

PATH = "/v1/chat/completions"


class Clerk:
    """An application that notes what it is asked, and when each request is running."""

    def __init__(self, answer: Callable[[int], tuple[int, Any]] = lambda count: (200, {"ok": True})) -> None:
        self.asked: list[str] = []
        self.running = self.most_running = 0
        self._answer = answer
        self.app = Starlette(routes=[Route(PATH, self._take, methods=["POST"])])

    async def _take(self, request: Request) -> JSONResponse:
        name = (await request.json())["name"]
        self.asked.append(name)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.running -= 1
        status, body = self._answer(self.asked.count(name))
        return JSONResponse(body, status)


def work(name: str, group: str | None = None, **more: Any) -> Work:
    return Work(name, 1, PATH, json.dumps({"name": name}).encode(), group.encode() if group else None, **more)


def run(app: Any, source: Sequence[Work | Refused], out: Path, *, at_once: int = 4, **options: Any) -> Progress:
    with Results(out, out.with_suffix(".errors"), **options) as results:
        batch = BatchRun(app, iter(source), results, at_once=at_once)
        asyncio.run(batch.run())
    return batch.progress


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] if path.exists() else []


def test_every_request_has_one_row_and_so_many_run_at_once(tmp_path: Path) -> None:
    clerk, out = Clerk(), tmp_path / "out"
    names = [str(number) for number in range(50)]
    progress = run(clerk.app, [*map(work, names), Refused(None, 9, Failure("bad", "it is bad"))], out, at_once=7)
    assert sorted(ids(out)) == sorted(names)
    assert (clerk.most_running, progress.answered, progress.failed, progress.done) == (7, 50, 1, 51)
    (row,) = [json.loads(line) for line in out.with_suffix(".errors").read_text().splitlines()]
    assert (row["line"], row["error"]) == (9, {"code": "bad", "message": "it is bad"})


def test_the_first_of_a_group_ends_before_the_others_begin_and_other_groups_run_meanwhile(tmp_path: Path) -> None:
    began: dict[str, int] = {}
    ended: list[str] = []

    async def take(request: Request) -> JSONResponse:
        name = (await request.json())["name"]
        began[name] = len(ended)
        await asyncio.sleep(0.02 if name in ("a0", "b0") else 0.001)
        ended.append(name)
        return JSONResponse({})

    app = Starlette(routes=[Route(PATH, take, methods=["POST"])])
    source = [work(f"{group}{number}", group) for group in "ab" for number in range(5)] + [work("free")]
    run(app, source, tmp_path / "out", at_once=4)
    for group in "ab":
        first = ended.index(f"{group}0")
        assert all(began[f"{group}{number}"] > first for number in range(1, 5))
    assert began["b0"] == 0
    assert ended[0] == "free"


def test_answered_requests_are_not_asked_again_and_failed_ones_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refusing = Clerk(lambda count: (400, {"error": {"code": "odd", "message": "no"}}))
    run(Clerk().app, [work("a"), work("b")], out)
    progress = run(refusing.app, [work("a"), work("b"), work("c")], out, resume=True)
    assert (refusing.asked, progress.kept, progress.failed) == (["c"], 2, 1)
    clerk = Clerk()
    run(clerk.app, [work("a"), work("b"), work("c")], out, resume=True)
    assert clerk.asked == ["c"]
    assert ids(out) == ["a", "b", "c"]


def test_a_full_engine_is_asked_again_and_an_unfit_answer_too_but_not_for_ever(tmp_path: Path) -> None:
    busy = Clerk(lambda count: (429, {}) if count < 3 else (200, {"count": count}))
    run(busy.app, [work("a")], tmp_path / "busy")
    assert busy.asked == ["a"] * 3
    clerk = Clerk(lambda count: (200, {"count": count}))
    unfit = Failure("unfit", "too low")
    checked = [
        work("second", check=lambda reply: None if reply.body["count"] == 2 else unfit),
        work("never", check=lambda reply: unfit),
    ]
    progress = run(clerk.app, checked, tmp_path / "checked")
    assert (clerk.asked.count("second"), clerk.asked.count("never")) == (2, 3)
    assert (progress.answered, progress.failed) == (1, 1)


def test_a_batch_that_cannot_write_ends_and_gives_its_requests_up(tmp_path: Path) -> None:
    clerk = Clerk()
    with Results(Path("/dev/full"), None, force=True) as results:
        batch = BatchRun(clerk.app, map(work, "abcdef"), results, at_once=3)
        with pytest.raises(BatchError, match="No space"):
            asyncio.run(batch.run())
    assert clerk.running == 0
    assert len(clerk.asked) <= 4


@pytest.fixture(scope="module")
def app(counting_folder: Path) -> Iterator[Starlette]:
    host = ModelHost(lambda: Engine.open(counting_folder, replace(RUNTIME, max_num_seqs=4)))
    host.wait()
    yield create_app(host)
    host.close()


def test_the_answers_are_those_of_single_requests_and_a_beginning_is_read_once(app: Starlette, tmp_path: Path) -> None:
    system = "You are a clerk of many words. " * 12

    def line(number: int) -> bytes:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Question {number}?"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 5}
        return json.dumps({"custom_id": str(number), "url": PATH, "body": body}).encode()

    out = tmp_path / "out"
    lines = [line(number) for number in range(9)]
    progress = run(app, list(unique(read_lines(lines, {PATH}, 10_000))), out)
    together = {row["custom_id"]: row for row in map(json.loads, out.read_text().splitlines())}
    texts = {name: row["response"]["body"]["choices"][0]["message"]["content"] for name, row in together.items()}
    beginning = progress.cached_tokens / 8
    assert beginning > len(system) / 3
    new = progress.prompt_tokens - progress.cached_tokens
    assert new < beginning + 9 * 60
    for number in (0, 4, 8):
        alone = tmp_path / str(number)
        run(app, list(read_lines([lines[number]], {PATH}, 10_000)), alone)
        (row,) = map(json.loads, alone.read_text().splitlines())
        assert row["response"]["body"]["choices"][0]["message"]["content"] == texts[str(number)]


def test_only_shared_beginnings_are_kept(app: Starlette, tmp_path: Path) -> None:
    """No line goes on with another's chat. Several answers to one prompt begin with its state."""

    def line(name: str, *messages: tuple[str, str], **fields: Any) -> bytes:
        chat = [{"role": role, "content": content} for role, content in messages]
        body = {"model": MODEL, "messages": chat, "max_tokens": 2, **fields}
        return json.dumps({"custom_id": name, "url": PATH, "body": body}).encode()

    engine: Engine = app.state.host.ready_engine()

    def kept(name: str, *lines: bytes) -> int:
        before = engine.prefix_account().num_snapshots
        run(app, list(read_lines(lines, {PATH}, 10_000)), tmp_path / name)
        return engine.prefix_account().num_snapshots - before

    assert kept("alone", line("1", ("user", "One?")), line("2", ("user", "Two?"))) == 0
    system = ("system", "You are another clerk. " * 20)
    assert kept("system", *(line(number, system, ("user", f"{number}?")) for number in "123")) == 1
    assert kept("turns", line("1", ("user", "a"), ("assistant", "b"), ("user", "c"))) == 1
    assert kept("several", line("1", ("user", "Three?"), n=3)) == 1


def test_requests_begin_several_at_a_time(tmp_path: Path) -> None:
    """So that their prompts are read together."""
    events: list[str] = []
    clerk = Clerk()

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        events.append("begins")
        await clerk.app(scope, receive, send)
        events.append("ends")

    run(noting, [work(str(number)) for number in range(64)], tmp_path / "out", at_once=16)
    assert clerk.most_running == 16
    together = [len(list(group)) for event, group in groupby(events) if event == "begins"]
    assert sum(together) == 64
    assert min(together) >= 4
