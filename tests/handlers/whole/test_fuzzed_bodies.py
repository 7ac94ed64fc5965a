"""Bodies from an attacker against a server of the trained miniature: it answers all in time and stays as it was.

In CI 300 bodies; QWONNX_TEST_FUZZ_BODIES=20000 sends as many. QWONNX_TEST_FUZZ_ARTIFACT names an exported miniature,
which otherwise is exported first. QWONNX_TEST_FUZZ_STRICT=1 judges times as issued (2 s an answer, 250 ms for the
health at the 99.9th percentile), and otherwise with room for a machine that does other work too.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from infra.miniature.checkpoint import TRAINED
from qwonnx.export import ExportOptions, export_checkpoint
from tests.handlers.whole.fuzzed_bodies import bodies
from tests.handlers.whole.served_process import Reply, ServedProcess, process_serving, watched

NUM_BODIES = int(os.environ.get("QWONNX_TEST_FUZZ_BODIES", "300"))
IS_LARGE = NUM_BODIES >= 3000
IS_STRICT = os.environ.get("QWONNX_TEST_FUZZ_STRICT") == "1"
MAX_ANSWER_SECONDS = 2.0 if IS_STRICT else 8.0
MAX_HEALTH_SECONDS = 0.25 if IS_STRICT else 1.0
NUM_CLIENTS = 4
MODEL = "checkpoint"
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("fuzz")
    if given_one := os.environ.get("QWONNX_TEST_FUZZ_ARTIFACT"):
        artifact = Path(given_one)
    else:
        artifact = folder / "artifact"
        export_checkpoint(TRAINED, artifact, ExportOptions())
    # A small prefix cache: it is meant to fill, and would hide what is not.
    options = ("--model-name", MODEL, "--max-model-len", 1024, "--prefix-cache-bytes", "16MB")
    with process_serving(artifact, folder / "log", *options) as served:
        yield served


def _complaint(body: bytes, reply: Reply) -> str | None:
    """What is wrong with an answer, or None."""
    shown = f"{reply.status} after {reply.seconds:.2f} s: {reply.content[:300]!r} to {body[:600]!r}"
    if reply.status >= 500 or reply.seconds > MAX_ANSWER_SECONDS:
        return shown
    if reply.status != 200:
        error = json.loads(reply.content)["error"]
        return None if error["message"] and "\n" not in error["message"] else shown
    if not reply.content.startswith(b"data: "):
        return None if json.loads(reply.content)["choices"] else shown
    last = reply.content.rstrip().rpartition(b"data: ")[2]
    if last == b"[DONE]":
        return None
    return None if json.loads(last)["error"]["code"] == "invalid_guide" else shown


def _resident_at_rest(server: ServedProcess) -> int:
    time.sleep(6)  # it gives memory back every five seconds
    return server.resident_bytes()


def test_no_body_fails_the_server_or_stops_it(server: ServedProcess) -> None:
    faults: list[str] = []
    statuses: Counter[int] = Counter()
    slowest: list[float] = []

    def send(body: bytes) -> None:
        reply = server.post(body)
        statuses[reply.status] += 1
        slowest.append(reply.seconds)
        if (complaint := _complaint(body, reply)) is not None:
            faults.append(complaint)

    def run(num_bodies: int, pool: ThreadPoolExecutor) -> None:
        @settings(
            max_examples=num_bodies,
            deadline=None,
            database=None,
            derandomize=NUM_BODIES <= 300,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies(MODEL))
        def each(body: bytes) -> None:
            pending.append(body)
            if len(pending) == 8 * NUM_CLIENTS:
                list(pool.map(send, pending))
                pending.clear()
                assert len(faults) < 20, faults

        pending: list[bytes] = []
        each()
        list(pool.map(send, pending))

    with ThreadPoolExecutor(NUM_CLIENTS) as pool, watched(server.port) as delays:
        # Fills what fills only once: threads, buffers, kept forms, what malloc keeps. 3,000 bodies fill all of it.
        run(max(3000, NUM_BODIES // 4) if IS_LARGE else 100, pool)
        before = _resident_at_rest(server)
        run(NUM_BODIES, pool)
    after = _resident_at_rest(server)
    late = float(np.quantile(delays, 0.999))
    print(
        dict(statuses),
        f"answers: p50 {np.median(slowest):.3f} s, p99 {np.quantile(slowest, 0.99):.3f} s, max {max(slowest):.3f} s;",
        f"health: {len(delays)} times, p50 {np.median(delays) * 1e3:.1f} ms, p99.9 {late * 1e3:.0f} ms,",
        f"max {max(delays) * 1e3:.0f} ms; resident {before // MEGABYTE} -> {after // MEGABYTE} MiB",
    )
    assert not faults, faults
    assert statuses[200] > 20
    assert statuses[400] > 20
    assert late < MAX_HEALTH_SECONDS
    assert after < 1.1 * before if IS_LARGE else after < before + 128 * MEGABYTE
    assert "Traceback" not in server.log.read_text()
    assert server.stop(30) < 10
