"""A server whose engine answers at once, for http_layer.py: what is left is the HTTP layer.

    python infra/bench/instant_server.py ARTIFACT PORT [--step-milliseconds 0] [--loop asyncio]

Run as a file, so that it serves whichever checkout is first on PYTHONPATH. The artifact's tokenizer and template make
the prompts. One thread gives each request a token a step, as the real engine does, and computes nothing. GET /cpu
answers with the processor seconds of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.http.listener import bind
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.server import Server
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.settings import RuntimeSettings

_TEXT, _TOKEN = " word", 5
_IDLE_SECONDS = 0.0002


class _Row:
    """One request and what it has got."""

    def __init__(self, name: str, num_prompt: int, max_tokens: int, on_output: Callable[[RequestOutput], None]) -> None:
        self.name = name
        self._num_prompt = num_prompt
        self._max_tokens = max_tokens
        self._on_output = on_output
        self._num_generated = 0

    def step(self) -> bool:
        """Give one token; whether it was the last."""
        self._num_generated += 1
        reason = FinishReason.LENGTH if self._num_generated >= self._max_tokens else None
        self._on_output(RequestOutput(self.name, _TEXT, (_TOKEN,), reason, self._num_prompt, self._num_generated, 0))
        return reason is not None


class InstantEngine(Engine):
    """The artifact's engine, whose requests are answered by give()."""

    rows: dict[str, _Row]
    step_seconds = 0.0

    def submit(
        self, prompt_token_ids: Sequence[int], params: Any, on_output: Callable[[RequestOutput], None], **options: Any
    ) -> str:
        """Answer with max_tokens words. The other options of Engine.submit() change nothing here."""
        if not self.is_ready:
            return super().submit(prompt_token_ids, params, on_output, **options)  # the warm-up
        name = options["request_id"]
        self.rows[name] = _Row(name, len(prompt_token_ids), params.max_tokens, on_output)
        return str(name)

    def abort(self, request_id: str, *, keep: bool = False) -> None:
        self.rows.pop(request_id, None)
        super().abort(request_id, keep=keep)

    def give(self) -> None:
        """Give a token to each row, step by step, for ever."""
        while True:
            began = time.perf_counter()
            rows = list(self.rows.values())
            for row in rows:
                if row.step():
                    self.rows.pop(row.name, None)
            # Even an instant engine gives the loop's thread the interpreter between two steps.
            time.sleep(max(0.0, self.step_seconds - (time.perf_counter() - began)) if rows else _IDLE_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--step-milliseconds", type=float, default=0.0)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()

    def load() -> Engine:
        settings = RuntimeSettings(num_threads=1, max_num_seqs=4, spin=False, max_model_len=2048)
        engine = InstantEngine.open(options.artifact, settings)
        assert isinstance(engine, InstantEngine)
        engine.rows = {}
        engine.step_seconds = options.step_milliseconds / 1000
        threading.Thread(target=engine.give, daemon=True).start()
        return engine

    async def cpu(request: Request) -> Response:
        return PlainTextResponse(f"{time.process_time():.6f}")

    host = ModelHost(load)
    extension = Extension(routes=(Route("/cpu", cpu),))
    server = Server(
        host, ServerSettings(), make_app=lambda host, settings: create_app(host, settings, extension=extension)
    )
    with (
        bind("127.0.0.1", options.port) as listener,
        asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner,
    ):
        runner.run(server.serve(sockets=[listener]))


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    main()
