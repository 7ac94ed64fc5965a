"""Many clients of all APIs at once, most of them badly behaved: afterwards nothing of them is left in the server.

In CI 24 clients come for some seconds; QWONNX_TEST_CROWD=200x600 makes it 200 clients for ten minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import RUNTIME, Served, serving, until
from tests.resident import resident_bytes
from tests.runtime.counting_model import CountingModel, make

# Of asyncio's own pool, which grows to this while others are busy: a thread of it may be new in the second crowd.
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
CLIENTS, SECONDS = (int(part) for part in os.environ.get("QWONNX_TEST_CROWD", "24x4").split("x"))


@dataclass(frozen=True, slots=True)
class Held:
    """What a server holds."""

    rows: int
    tasks: int
    files: int
    threads: int
    bytes: int

    @classmethod
    def by(cls, served: Served) -> Held:
        """After the last request has ended."""
        loop = served.server.servers[0].get_loop()
        until(lambda: served.engine.num_live_requests == 0 and not served.server.server_state.connections, 60)
        time.sleep(0.3)  # asyncio lets go of what has ended in its next turns
        seen = served.engine.metrics()
        return cls(
            seen.num_running + seen.num_waiting,
            len(asyncio.all_tasks(loop)),
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            resident_bytes(),
        )


def _questions(model: CountingModel, file: Path) -> None:
    found = []
    for number in range(12):
        text, tokens = f"{number} of a crowd " * (1 + number % 5), 5 + 17 * number
        prompt = model.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
        answer = model.tokenizer.decode(model.answer(prompt, tokens))
        found.append({"text": text, "max_tokens": tokens, "answer": answer})
    file.write_text(json.dumps(found))


def _crowd(served: Served, questions: Path, seconds: float) -> dict[str, int]:
    port = served.url.rpartition(":")[2]
    program = [
        sys.executable,
        str(Path(__file__).with_name("crowd.py")),
        port,
        str(questions),
        str(CLIENTS),
        str(seconds),
    ]
    run = subprocess.run(program, capture_output=True, text=True, timeout=seconds + 120, check=False)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["num_faults"] == 0, told["faults"]
    outcomes: dict[str, int] = told["outcomes"]
    return outcomes


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not tell a process's files")
def test_nothing_of_a_crowd_is_left(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact")
    _questions(model, tmp_path / "questions.json")
    settings = ServerSettings(shutdown_seconds=0.5, header_seconds=2, body_seconds=3, send_seconds=5)
    runtime = replace(RUNTIME, max_queued_requests=2 * CLIENTS, prefix_cache_bytes=1 << 20)
    with serving(model.folder, runtime=runtime, settings=settings) as served:
        _crowd(served, tmp_path / "questions.json", max(2, SECONDS * 0.3))  # fills pools and buffers, which stay
        before = Held.by(served)
        outcomes = _crowd(served, tmp_path / "questions.json", SECONDS)
        after = Held.by(served)
        assert served.engine.check() == []
    print(outcomes, before, after)
    for api in ("chat", "messages", "responses"):
        assert sum(count for name, count in outcomes.items() if name.startswith(f"ask: right, {api}")) > 0
    assert outcomes["leave: left"] > CLIENTS
    assert outcomes["garbage: refused"] > 0
    assert outcomes["garbage: no HTTP"] > 0
    assert after.rows == before.rows == 0
    assert after.tasks <= before.tasks
    assert after.files <= before.files
    assert after.threads <= before.threads + POOL_THREADS
    assert after.bytes <= 1.05 * before.bytes
