"""The AWS Lambda handler on an engine whose steps take at least 50 ms, as with a large model.

Only for a separate process: importing this makes every engine slow.
"""

from __future__ import annotations

import time

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput

_step = Engine.step


def _slow_step(self: Engine) -> list[RequestOutput]:
    time.sleep(0.05)
    return _step(self)


Engine.step = _slow_step  # type: ignore[method-assign]

from qwonnx.handlers.functions.aws_lambda import handler as handler  # noqa: E402 - it warms up as it is imported
