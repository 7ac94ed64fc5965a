"""The engine's thread wakes a loop once for many outputs, and loses none."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence

import pytest

from qwonnx.handlers.chat.loop_inbox import LoopInbox
from qwonnx.runtime.engine.request import RequestOutput
from tests.handlers.fakes import output

pytestmark = pytest.mark.fast


def test_every_output_is_received_once_in_order_on_the_loops_thread() -> None:
    received: list[int] = []
    threads: set[int] = set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        inbox, ended = LoopInbox.of(loop), asyncio.Event()
        assert LoopInbox.of(loop) is inbox

        def receive(outputs: Sequence[RequestOutput]) -> None:
            received.extend(each.token_ids[0] for each in outputs)
            threads.add(threading.get_ident())
            if len(received) == 20_000:
                ended.set()

        def work() -> None:
            for number in range(20_000):
                inbox.put(receive, [output("", number)])

        worker = threading.Thread(target=work)
        worker.start()
        async with asyncio.timeout(30):
            await ended.wait()
        worker.join()
        assert threads == {threading.get_ident()}

    asyncio.run(main())
    assert received == list(range(20_000))


def test_outputs_that_come_before_the_loop_looks_wake_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        loop, wakes = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def counted(*arguments: object) -> object:
            nonlocal wakes
            wakes += 1
            return wake(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        received: list[RequestOutput] = []
        for number in range(16):
            LoopInbox.of(loop).put(received.extend, [output("", number)])
        await asyncio.sleep(0)
        LoopInbox.of(loop).put(received.extend, [output("", 16)])
        await asyncio.sleep(0)
        assert len(received) == 17
        return wakes

    assert asyncio.run(main()) == 2


def test_a_closed_loop_is_told_each_time_and_is_not_kept() -> None:
    loop = asyncio.new_event_loop()
    inbox = LoopInbox.of(loop)
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            inbox.put(lambda outputs: None, [output()])
    gone = weakref.ref(loop)
    del loop, inbox
    gc.collect()
    assert gone() is None
