"""AsyncLLM on the caller's event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qwonnx import AsyncLLM
from qwonnx.runtime.errors import EngineClosedError
from tests.handlers.library.test_llm import SETTINGS


def test_chats_share_the_loop_and_streams_end(counting_folder: Path) -> None:
    async def run() -> None:
        async with await AsyncLLM.open(counting_folder, **SETTINGS) as llm:
            alone = [await llm.chat(text, max_tokens=6) for text in "abcdef"]
            assert await asyncio.gather(*(llm.chat(text, max_tokens=6) for text in "abcdef")) == alone
            assert await llm.generate(list("abcdef"), chat=True, max_tokens=6) == alone
            stream = await llm.chat("a", max_tokens=6, stream=True)
            assert "".join([piece async for piece in stream]) == alone[0] == await stream.answer()
            async with await llm.chat("a", ignore_eos=True, stream=True) as left:
                async for _ in left:
                    break
            endless = asyncio.create_task(llm.chat("a", ignore_eos=True))
            while not llm.engine.num_live_requests:  # it is short: nothing may pass between this and its end
                await asyncio.sleep(0)
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            while llm.engine.num_live_requests:
                await asyncio.sleep(0.01)
        assert repr(llm).startswith("AsyncLLM(")
        with pytest.raises(EngineClosedError, match="make a new AsyncLLM"):
            await llm.chat("a")

    asyncio.run(asyncio.wait_for(run(), 60))
