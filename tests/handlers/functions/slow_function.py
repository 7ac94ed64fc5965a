"""The AWS Lambda handler around an engine each of whose steps takes at least 50 ms, as a large model's do.

For a process of its own: importing this makes every engine slow.
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
