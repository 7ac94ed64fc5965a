"""A function's main.py, on an engine whose steps take at least 20 ms; only for a process of its own."""

from __future__ import annotations

import time

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput

_step = Engine.step


def _slow_step(self: Engine) -> list[RequestOutput]:
    time.sleep(0.02)
    return _step(self)


Engine.step = _slow_step  # type: ignore[method-assign]

from qwonnx.handlers.functions.google_functions import handler as handler  # noqa: E402 - the engine is slow by now
