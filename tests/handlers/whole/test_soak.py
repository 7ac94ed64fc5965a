"""Sixteen clients that ask, disconnect, time out and send nonsense to a server with little memory, which must survive.

In CI it runs for some seconds; QWONNX_TEST_SOAK_SECONDS=1800 makes it half an hour.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.machine import give_back_memory
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.scheduling.row_budget import settle
from qwonnx.runtime.scheduling.scheduler import HEADROOM
from tests.handlers.serving import MODEL, RUNTIME, Served, serving
from tests.resident import resident_bytes
from tests.runtime.counting_model import CountingModel, make

SECONDS = float(os.environ.get("QWONNX_TEST_SOAK_SECONDS", "12"))
NUM_CLIENTS = 16
MAX_MODEL_LEN = 512
PATH = "/v1/chat/completions"
SYSTEMS = ("", "you are a box. " * 8, "the quick é in a hat. " * 5)
MALFORMED: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b'{"model": "counting-model"}',
    b'{"model": "counting-model", "messages": []}',
    b'{"model": "another", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "counting-model", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
    b'{"model": "counting-model", "messages": [{"role": "user", "content": "' + b"long " * 600 + b'"}]}',
    b'{"model": "counting-model", "messages": [{"role": "user", "content": "x"}], "wish": 1}',
    b"\xff\xfe",
)


class Clients:
    """The actions of sixteen clients, and their outcomes."""

    def __init__(self, served: Served, model: CountingModel) -> None:
        self._served, self._model = served, model
        self._random = random.Random(0)
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    async def run(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=NUM_CLIENTS)
        async with httpx.AsyncClient(base_url=self._served.url, timeout=60, limits=limits, trust_env=False) as http:
            await asyncio.gather(*(self._client(http) for _ in range(NUM_CLIENTS)))

    async def _client(self, http: httpx.AsyncClient) -> None:
        while time.monotonic() < self._end:
            act = self._random.choice((self._ask, self._ask, self._stream, self._leave, self._hurry, self._nonsense))
            try:
                self.outcomes[f"{act.__name__[1:]}: {await act(http)}"] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                self.faults.append(f"{act.__name__}: {error!r}")

    def _request(self, **more: Any) -> dict[str, Any]:
        system = self._random.choice(SYSTEMS)
        user = "".join(self._random.choices("abc é", k=self._random.randint(1, 60)))
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": user}]
        return {"model": MODEL, "messages": messages, "max_tokens": self._random.randint(1, 150), **more}

    def _expected(self, request: dict[str, Any]) -> str:
        turns = [f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in request["messages"]]
        prompt = self._model.tokenizer.encode("".join(turns) + "<|im_start|>assistant\n")
        return self._model.tokenizer.decode(self._model.answer(prompt, request["max_tokens"]))

    async def _ask(self, http: httpx.AsyncClient) -> str:
        request = self._request()
        response = await http.post(PATH, json=request)
        if response.status_code == 429:
            return "refused, the queue is full"
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == self._expected(request)
        return "right"

    async def _stream(self, http: httpx.AsyncClient) -> str:
        request = self._request(stream=True)
        text, reasons = "", []
        async with http.stream("POST", PATH, json=request) as response:
            if response.status_code == 429:
                return "refused, the queue is full"
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    text += choice["delta"].get("content") or ""
                    reasons += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
        assert (text, reasons) == (self._expected(request), ["length"])
        return "right"

    async def _leave(self, http: httpx.AsyncClient) -> str:
        async with http.stream("POST", PATH, json=self._request(stream=True)) as response:
            lines = response.aiter_lines()
            for _ in range(self._random.randint(0, 6)):
                await anext(lines, "")
        return "left"

    async def _hurry(self, http: httpx.AsyncClient) -> str:
        try:
            await http.post(PATH, json=self._request(), timeout=self._random.uniform(0.001, 0.05))
        except httpx.TimeoutException:
            return "too late"
        return "in time"

    async def _nonsense(self, http: httpx.AsyncClient) -> str:
        response = await http.post(PATH, content=self._random.choice(MALFORMED))
        assert 400 <= response.status_code < 500, response.text
        assert "error" in response.json()
        return "refused"


def _tight(folder: Path) -> int:
    """Bytes of three short requests and their headroom, or of one of maximum length."""
    with Engine.open(folder, RUNTIME) as engine:
        budget = settle(engine.artifact.decoder.states, RUNTIME, MAX_MODEL_LEN)[0]
    return max(3 * budget.bytes_of(120 + HEADROOM), budget.bytes_of(MAX_MODEL_LEN))


def _outgrow(engine: Engine, model: CountingModel) -> None:
    """Four answers that fit when they begin and outgrow the memory together: rows are given back in every run."""
    prompts = [engine.tokenizer.encode(f"{number} of a crowd") for number in range(RUNTIME.max_num_seqs)]
    said: list[list[int]] = [[] for _ in prompts]
    ended = threading.Semaphore(0)

    def receive(tokens: list[int], output: RequestOutput) -> None:
        tokens.extend(output.token_ids)
        if output.finish_reason is not None:
            ended.release()

    params = SamplingParams(temperature=0, max_tokens=250)
    for prompt, tokens in zip(prompts, said, strict=True):
        engine.submit(prompt, params, partial(receive, tokens))
    for _ in prompts:
        assert ended.acquire(timeout=60)
    assert said == [model.answer(prompt, 250) for prompt in prompts]


def test_a_server_survives_its_clients(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact", num_pairs=2)
    runtime = replace(
        RUNTIME,
        max_model_len=MAX_MODEL_LEN,
        max_queued_requests=8,
        cache_bytes=_tight(model.folder),
        prefix_cache_bytes=100_000,
    )
    with serving(model.folder, runtime=runtime) as served:
        engine, clients = served.engine, Clients(served, model)
        resident = []
        for part in (0.4, 0.3, 0.3):  # the first run fills buffers, pools and threads, which fill only once
            asyncio.run(clients.run(SECONDS * part))
            gc.collect()
            give_back_memory()  # heaps of other tests in this process hold free pages
            resident.append(resident_bytes())
            assert engine.check() == []
        _outgrow(engine, model)
        deadline = time.monotonic() + 10
        while engine.num_live_requests and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = engine.metrics()
        assert engine.check() == []
        assert engine.is_ready
    assert clients.faults == []
    assert (seen.num_running, seen.num_waiting, seen.cache_bytes, seen.failed_steps) == (0, 0, 0, 0)
    assert seen.preemptions > 0
    assert seen.cached_tokens > 0
    assert clients.outcomes["nonsense: refused"] > 10
    assert clients.outcomes["ask: right"] + clients.outcomes["stream: right"] > 10
    assert resident[2] - resident[1] < 8 << 20, resident
    print(dict(clients.outcomes), [each >> 20 for each in resident], seen.preemptions)
