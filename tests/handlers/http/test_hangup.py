"""SIGHUP reads the keys again, on either event loop, and only where there is a file of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.handlers.http.api_keys import KeyRing
from qwonnx.handlers.http.hangup import reloading_on_hangup
from qwonnx.handlers.settings import ServerSettings

pytestmark = [pytest.mark.fast, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")]


def _loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    try:
        import uvloop
    except ImportError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", _loops(), ids=lambda loop: loop.__module__)
def test_a_hangup_reads_the_file_again_while_the_application_runs(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    path = tmp_path / "keys"
    path.write_text("a: first\n")
    path.chmod(0o600)
    ring = KeyRing(ServerSettings(api_keys=str(path)))
    before = signal.getsignal(signal.SIGHUP)

    async def main() -> None:
        with reloading_on_hangup(ring):
            for text, names in (("b: second\n", ["b"]), ("no key\n", ["b"]), ("b: second\nc: third\n", ["b", "c"])):
                path.write_text(text)
                os.kill(os.getpid(), signal.SIGHUP)
                for _ in range(200):
                    await asyncio.sleep(0.005)
                    if [each.name for each in ring.keys] == names:
                        break
                assert [each.name for each in ring.keys] == names

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert signal.getsignal(signal.SIGHUP) == before


def test_without_a_file_or_on_another_thread_the_signal_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a: first\n")
    path.chmod(0o600)
    before = signal.getsignal(signal.SIGHUP)

    async def main(settings: ServerSettings) -> None:
        with reloading_on_hangup(KeyRing(settings)):
            assert signal.getsignal(signal.SIGHUP) == before

    async def aside() -> None:
        await asyncio.to_thread(asyncio.run, main(ServerSettings(api_keys=str(path))))

    asyncio.run(main(ServerSettings(api_key="only")))
    asyncio.run(aside())
