"""The bridge from the engine's thread to the loop: every output once, at most one abort, a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qwonnx.handlers.chat.outputs import OutputStream
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import QueueFullError
from qwonnx.runtime.sampling.params import SamplingParams
from tests.handlers.fakes import FakeEngine, output

pytestmark = pytest.mark.fast

PARAMS = SamplingParams()
LAST = output("b", 2, reason=FinishReason.STOP)


def run(test: Callable[[FakeEngine], Awaitable[Any]]) -> FakeEngine:
    engine = FakeEngine()
    asyncio.run(asyncio.wait_for(test(engine), 10))
    return engine


def stream(engine: FakeEngine, seconds: float | None = None) -> OutputStream:
    """A submitted request that ends in so many seconds."""
    deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
    return OutputStream(engine, [1, 2], PARAMS, request_id="mine", snapshot_at=(1,), deadline=deadline)


async def collected(outputs: OutputStream) -> list[RequestOutput]:
    return [each async for each in outputs]


def test_outputs_of_another_thread_come_in_their_order_and_an_ended_request_is_not_aborted() -> None:
    async def test(engine: FakeEngine) -> None:
        async with stream(engine) as outputs:
            thread = threading.Thread(target=lambda: [engine.give(each) for each in (output("a", 1), LAST)])
            thread.start()
            assert await collected(outputs) == [output("a", 1), LAST]
            thread.join()

    engine = run(test)
    assert engine.submitted == [
        {
            "token_ids": [1, 2],
            "params": PARAMS,
            "request_id": "mine",
            "snapshot_at": (1,),
            "owner": "",
            "adapter": "",
            "generated": (),
        },
    ]
    assert engine.aborted == []


def test_leaving_early_aborts_exactly_once() -> None:
    async def test(engine: FakeEngine) -> None:
        async with stream(engine) as outputs:
            engine.give(output("a", 1))
            async for _ in outputs:
                outputs.abort()
                return

    assert run(test).aborted == ["request"]


def test_what_the_engine_refuses_is_refused() -> None:
    class Full(FakeEngine):
        def submit(self, *arguments: Any, **options: Any) -> str:
            raise QueueFullError("full")

    async def main() -> None:
        with pytest.raises(QueueFullError):
            stream(Full())

    asyncio.run(main())


def test_at_the_deadline_an_answer_ends_with_what_there_is_of_it() -> None:
    async def test(engine: FakeEngine) -> None:
        async with stream(engine, 0.05) as outputs:
            engine.give(output("a", 1))
            first, last = await collected(outputs)
            assert first == output("a", 1)
            assert (last.text, last.token_ids, last.finish_reason) == ("", (), FinishReason.LENGTH)
            assert last.num_generated_tokens == 1

    assert run(test).aborted == ["request"]


@pytest.mark.parametrize("seconds", [0.03, 0, -1])
def test_an_answer_of_which_there_is_nothing_at_the_deadline_is_a_504(seconds: float) -> None:
    async def test(engine: FakeEngine) -> None:
        async with stream(engine, seconds) as outputs:
            with pytest.raises(ServiceError) as refusal:
                await collected(outputs)
            assert (refusal.value.kind, refusal.value.status) == (ErrorKind.TIMEOUT, 504)

    assert run(test).aborted == ["request"]


def test_an_end_that_came_in_time_counts_though_it_is_read_late() -> None:
    async def test(engine: FakeEngine) -> None:
        async with stream(engine, 0.03) as outputs:
            engine.give(LAST)
            await asyncio.sleep(0.05)
            assert await collected(outputs) == [LAST]

    assert run(test).aborted == []


def test_the_end_that_an_abort_at_the_deadline_brings_is_none_of_the_answer() -> None:
    async def test(engine: FakeEngine) -> None:
        async with stream(engine, 0.03) as outputs:
            engine.give(output("a", 1))
            reading = aiter(outputs)
            await anext(reading)
            await asyncio.sleep(0.05)
            engine.give(output(reason=FinishReason.ABORT))
            await asyncio.sleep(0)
            assert (await anext(reading)).finish_reason is FinishReason.LENGTH

    run(test)


def test_begun_waits_for_an_output_and_takes_none() -> None:
    async def test(engine: FakeEngine) -> None:
        outputs = stream(engine, 5)
        waiting = asyncio.ensure_future(outputs.begun())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        engine.give(LAST)
        await waiting
        assert await collected(outputs) == [LAST]

    assert run(test).aborted == []


def test_an_answer_that_does_not_begin_in_time_is_given_back_though_nobody_entered() -> None:
    async def test(engine: FakeEngine) -> None:
        with pytest.raises(ServiceError) as refusal:
            await stream(engine, 0.02).begun()
        assert refusal.value.status == 504

    assert run(test).aborted == ["request"]


def test_a_client_that_leaves_before_an_answer_begins_ends_it() -> None:
    async def test(engine: FakeEngine) -> None:
        waiting = asyncio.ensure_future(stream(engine).begun())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    assert run(test).aborted == ["request"]


@pytest.mark.parametrize("num_tokens", [3, 100_000])
def test_a_request_is_submitted_from_the_loop_or_for_a_long_prompt_from_a_thread(num_tokens: int) -> None:
    threads: list[threading.Thread] = []

    class Watched(FakeEngine):
        def submit(self, *arguments: Any, **options: Any) -> str:
            threads.append(threading.current_thread())
            return super().submit(*arguments, **options)

    async def test(engine: FakeEngine) -> None:
        async with await OutputStream.submitted(engine, [1] * num_tokens, PARAMS, request_id="mine") as outputs:
            engine.give(LAST)
            assert await collected(outputs) == [LAST]

    asyncio.run(asyncio.wait_for(test(Watched()), 10))
    assert (threads == [threading.main_thread()]) is (num_tokens == 3)


def test_a_request_that_is_cancelled_while_a_thread_submits_it_is_aborted() -> None:
    entered, may_go = threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def submit(self, *arguments: Any, **options: Any) -> str:
            entered.set()
            may_go.wait(10)
            return super().submit(*arguments, **options)

    async def test(engine: FakeEngine) -> None:
        submitting = asyncio.ensure_future(OutputStream.submitted(engine, [1] * 100_000, PARAMS))
        await asyncio.to_thread(entered.wait, 10)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        may_go.set()
        while not engine.aborted:
            await asyncio.sleep(0.01)

    engine = Slow()
    asyncio.run(asyncio.wait_for(test(engine), 10))
    assert engine.aborted == ["request"]


def test_a_burst_has_every_output_in_order_and_the_first_and_the_last_at_once() -> None:
    async def main() -> list[int]:
        engine = FakeEngine()
        stream = OutputStream(engine, [1], SamplingParams(), burst=4)
        for number in range(6):
            engine.give(output("x", number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stream._queue.qsize() == 5, "the first, and a burst of four"
        engine.give(output("x", 6, reason=FinishReason.STOP))
        return [each.token_ids[0] async for each in stream]

    assert asyncio.run(main()) == list(range(7))


def test_a_deadline_takes_what_a_burst_still_holds() -> None:
    async def main() -> list[int]:
        engine, loop = FakeEngine(), asyncio.get_running_loop()
        stream = OutputStream(engine, [1], SamplingParams(), burst=100, deadline=loop.time() + 0.05)
        for number in range(6):
            engine.give(output("x", number))
        return [each.token_ids[0] for each in [each async for each in stream] if each.token_ids]

    assert asyncio.run(main()) == list(range(6))
