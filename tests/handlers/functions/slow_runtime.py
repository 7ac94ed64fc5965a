"""Our own runtime on an engine whose steps take at least 20 ms. Only for a separate process."""

from __future__ import annotations

import os
import time

from qwonnx.handlers.functions.lambda_runtime import main
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput

_step = Engine.step


def _slow_step(self: Engine) -> list[RequestOutput]:
    time.sleep(0.02)
    return _step(self)


Engine.step = _slow_step  # type: ignore[method-assign]

if __name__ == "__main__":
    os._exit(main())
