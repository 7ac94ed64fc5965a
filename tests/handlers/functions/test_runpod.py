"""RunPod's jobs: by the worker's own code, by its local test, and by the handler alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.functions import runpod as platform
from qwonnx.runtime.errors import SettingsError
from tests.handlers.functions.platforms import BODY, content_of
from tests.handlers.serving import chat

ROOT = Path(__file__).resolve().parents[3]
ROUTE = "/v1/chat/completions"
TOKENS = 400  # so many that the worker takes its first item before the last one is sampled
STREAM = {**BODY, "max_tokens": TOKENS, "stream": True}


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "QWONNX_ARTIFACT": str(folder),
        "QWONNX_NUM_THREADS": "1",
        "QWONNX_MAX_MODEL_LEN": "512",
        "QWONNX_MAX_BODY_BYTES": "50kB",
    }


def job(given: Any, number: int = 1) -> dict[str, Any]:
    return {"id": f"job-{number}", "input": given}


def test_the_worker_streams_answers_and_fails_jobs_that_are_refused(counting_folder: Path) -> None:
    jobs = [
        job(dict(BODY)),
        job(STREAM),
        job({"openai_route": ROUTE, "openai_input": dict(STREAM)}),
        job({"openai_route": "/v1/models"}),
        job({**BODY, "temperature": "hot"}),
        job({**BODY, "messages": chat("x" * 50_000)}),
        job({"Records": [{"eventSource": "aws:sqs"}]}),
        job(["no", "object"]),
        job({"openai_route": "v1", "openai_input": {}}),
        job({"openai_route": "/v1/\ud800", "openai_input": {}}),
        job({**BODY, "messages": chat("\ud800")}),
    ]
    command = [sys.executable, "-m", "tests.handlers.functions.runpod_jobs"]
    run = subprocess.run(
        command,
        input=json.dumps(jobs),
        env=environment(counting_folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[[")]
    whole, stream, text, models, *failed = lines
    ((_, item),) = whole
    said = content_of(item["output"])

    pieces = [item["output"] for _, item in stream]
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces).startswith(said)
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    first_content = next(i for i, piece in enumerate(pieces) if piece["choices"][0]["delta"].get("content"))
    assert stream[first_content][0] < TOKENS - 10, "the first item comes before the last token is sampled"

    events = "".join(item["output"] for _, item in text)
    assert events.startswith("data: {")
    assert events.endswith("data: [DONE]\n\n")
    assert models[0][1]["output"]["data"][0]["id"] == "counting-model"

    codes = []
    for ((_, item),) in failed:
        assert list(item["output"]) == ["error"], "the worker fails a job with this item"
        codes.append(json.loads(item["output"]["error"])["error"]["code"])
    assert codes == ["invalid_value", "body_too_large", "unknown_parameter", *["invalid_event"] * 4]


def test_the_local_test_prints_items(counting_folder: Path) -> None:
    given = json.dumps({"input": {**BODY, "stream": True}})
    command = [sys.executable, "-m", "qwonnx.handlers.functions.runpod", "--test_input", given]
    run = subprocess.run(
        command, env=environment(counting_folder), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert ("async_generator" in run.stdout, "Traceback" in run.stderr) == (False, False)
    assert "'finish_reason': 'length'" in run.stdout


def test_a_job_that_ends_early_ends_its_generation(counting_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(counting_folder).items():
        monkeypatch.setenv(name, value)
    platform._worker.cache_clear()
    host = platform._worker().host

    async def leave() -> None:
        items = platform.handler(job({**STREAM, "max_tokens": 400}))
        await anext(items)
        await items.aclose()
        for _ in range(200):
            if host.ready_engine().num_live_requests == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it runs on")

    async def refused() -> Any:
        return await platform.collected(job({**STREAM, "temperature": "hot"}))

    try:
        asyncio.run(leave())
        assert list(asyncio.run(refused())) == ["error"], "the local test fails then"
    finally:
        host.close()
        platform._worker.cache_clear()


def test_a_key_is_refused_because_jobs_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWONNX_API_KEY", "secret")
    platform._worker.cache_clear()
    with pytest.raises(SettingsError, match="unset QWONNX_API_KEY"):
        platform._worker()


def test_the_package_is_imported_by_main_alone() -> None:
    program = "import sys, qwonnx.handlers.functions.runpod; print('runpod' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "False", run.stderr
