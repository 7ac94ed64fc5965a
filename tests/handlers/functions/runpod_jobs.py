"""Runs jobs as RunPod's worker does, for a process of its own: prints one JSON line a job.

Standard input has the jobs. A line has the items, and for each item how many steps the engine had made by then.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from runpod.serverless.modules.rp_handler import is_generator
from runpod.serverless.modules.rp_job import run_job_generator

from qwonnx.handlers.functions.runpod import handler
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput

_step = Engine.step
_steps = 0


def _counted_step(self: Engine) -> list[RequestOutput]:
    global _steps
    _steps += 1
    return _step(self)


async def _run(jobs: list[Any]) -> None:
    for job in jobs:
        before, items = _steps, []
        async for item in run_job_generator(handler, job):
            items.append([_steps - before, item])
        print(json.dumps(items), flush=True)


if __name__ == "__main__":
    Engine.step = _counted_step  # type: ignore[method-assign]
    assert is_generator(handler)
    asyncio.run(_run(json.load(sys.stdin)))
