"""Ask the requests of a batch, as many at once as the engine can run, and write each answer as it comes.

Requests begin several at a time, when a quarter of the engine's rows is free. Their prompts are then read together: a
step that reads four prompts takes little longer than one that reads one, for it reads the same weights. The rows that
stay empty meanwhile cost less.

Requests that begin with the same long text wait for the first of them: they then find its states in the prefix cache.
Meanwhile others run.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp

from qwonnx.handlers.batch.application import post
from qwonnx.handlers.batch.results import Results
from qwonnx.handlers.batch.work import Failure, Refused, Reply, Row, Work

_BUSY_SECONDS = 0.2  # until a request that found the engine full is asked again
_BUSY = (429, 503)
_MOST_BUSY = 600
_TRIES = 3  # of an answer that its check refuses
_MOST_PARKED, _MOST_PARKED_BYTES = 4096, 64 << 20
_SHARE_TOGETHER = 4  # a quarter
_MOST_GROUPS = 65536  # whose first request is known to have ended


@dataclass(slots=True)
class Progress:
    """What a run has done. Answers of an earlier run count as kept."""

    kept: int = 0
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0

    @property
    def done(self) -> int:
        return self.kept + self.answered + self.failed

    def count(self, reply: Reply) -> None:
        """Add an answer's tokens, which the Responses API calls otherwise; answers of other forms have none."""
        usage = reply.body.get("usage") if isinstance(reply.body, dict) else None
        if isinstance(usage, dict):
            prompt, generated = ("input", "output") if "input_tokens" in usage else ("prompt", "completion")
            self.prompt_tokens += int(usage.get(f"{prompt}_tokens") or 0)
            self.generated_tokens += int(usage.get(f"{generated}_tokens") or 0)
            details = usage.get(f"{prompt}_tokens_details")
            self.cached_tokens += int((details or {}).get("cached_tokens") or 0)


class BatchRun:
    """One run over some work.

    Args:
        app: answers the requests.
        source: the work, read as it is needed.
        results: where rows go.
        at_once: requests that are asked at a time: the engine's rows.
        on_progress: called after each row.
    """

    def __init__(
        self,
        app: ASGIApp,
        source: Iterator[Work | Refused],
        results: Results,
        *,
        at_once: int,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.progress = Progress()
        self._app, self._results, self._at_once, self._on_progress = app, results, at_once, on_progress
        self._queue = _Queue(self._unanswered(source))

    async def run(self) -> None:
        """Returns when every request has its row.

        Raises:
            BatchError: a row cannot be written. Running requests are then given up.
            CancelledError: the same.
        """
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                begins = not running or self._at_once - len(running) >= self._at_once // _SHARE_TOGETHER
                while begins and len(running) < self._at_once and (work := self._queue.next()) is not None:
                    running.add(asyncio.create_task(self._answer(work)))
                if not running:
                    return
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                failures = [task.exception() for task in ended]  # all of them: none may go unseen
                if (failure := next(filter(None, failures), None)) is not None:
                    raise failure
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _unanswered(self, source: Iterator[Work | Refused]) -> Iterator[Work]:
        for each in source:
            if isinstance(each, Refused):
                self._fail(each.custom_id, each.number, each.failure, None)
            elif each.custom_id in self._results.answered:
                self.progress.kept += 1
            else:
                yield each

    async def _answer(self, work: Work) -> None:
        try:
            reply, failure = await self._checked(work)
        finally:
            self._queue.ended(work)
        self.progress.count(reply)
        if failure is not None:
            self._fail(work.custom_id, work.number, failure, reply)
            return
        self._results.answer({"custom_id": work.custom_id, **work.row(reply)})
        self.progress.answered += 1
        self._on_progress(self.progress)

    async def _checked(self, work: Work) -> tuple[Reply, Failure | None]:
        for left in reversed(range(_TRIES)):
            reply = await self._asked(work)
            if not reply.is_right:
                return reply, _failure_of(reply)
            failure = work.check(reply)
            if failure is None or not left:
                break
        return reply, failure

    async def _asked(self, work: Work) -> Reply:
        for _ in range(_MOST_BUSY):
            reply = await post(self._app, work.path, work.body)
            if reply.status not in _BUSY:
                break
            await asyncio.sleep(_BUSY_SECONDS)
        return reply

    def _fail(self, custom_id: str | None, number: int, failure: Failure, reply: Reply | None) -> None:
        response = None
        if reply is not None:
            response = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
        row: Row = {"id": f"batch_req_{reply.request_id if reply else number}", "custom_id": custom_id, "line": number}
        self._results.error({**row, "response": response, "error": {"code": failure.code, "message": failure.message}})
        self.progress.failed += 1
        self._on_progress(self.progress)


class _Queue:
    """The order of the work: as it comes, but for what waits for the first request of its group."""

    def __init__(self, source: Iterator[Work]) -> None:
        self._source = source
        self._ready: deque[Work] = deque()
        self._parked: dict[bytes, deque[Work]] = {}  # by group whose first request is running
        self._num_parked = self._parked_bytes = 0
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def next(self) -> Work | None:
        """The next request to ask; None if nothing is left, or all that is left waits."""
        if self._ready:
            return self._ready.popleft()
        while self._num_parked < _MOST_PARKED and self._parked_bytes < _MOST_PARKED_BYTES:
            work = next(self._source, None)
            if work is None:
                return None
            if work.group is None or work.group in self._known:
                return work
            if work.group not in self._parked:
                self._parked[work.group] = deque()
                return work
            self._parked[work.group].append(work)
            self._num_parked += 1
            self._parked_bytes += len(work.body)
        return None

    def ended(self, work: Work) -> None:
        """A request has its answer: those that waited for it can begin."""
        if work.group is None or work.group not in self._parked:
            return
        waiting = self._parked.pop(work.group)
        self._num_parked -= len(waiting)
        self._parked_bytes -= sum(len(each.body) for each in waiting)
        self._ready.extend(waiting)
        self._known[work.group] = None
        if len(self._known) > _MOST_GROUPS:
            self._known.popitem(last=False)


def _failure_of(reply: Reply) -> Failure:
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    told = error if isinstance(error, dict) else {}
    return Failure(str(told.get("code") or f"status_{reply.status}"), str(told.get("message") or "the request failed"))


class Speed:
    """Tokens a second since the run began, and the seconds that the rest will take."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tokens_per_second(self, progress: Progress) -> float:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return (progress.prompt_tokens - progress.cached_tokens + progress.generated_tokens) / seconds

    def seconds_left(self, progress: Progress, total: int) -> float | None:
        """None before the first row."""
        new = progress.answered + progress.failed
        return (time.monotonic() - self._began) / new * (total - progress.done) if new else None
