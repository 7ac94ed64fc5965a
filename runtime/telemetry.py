"""Nothing that qwonnx runs reports to anybody: the switches of the libraries that would.

ONNX Runtime's wheels report to their maker by default since 1.29: the first session writes an identity and a queue
under ~/.cache/Microsoft/DeveloperTools and starts a thread, which after ten seconds asks DNS for
mobile.events.data.microsoft.com. The library reads ORT_DISABLE_TELEMETRY when it is loaded; its function
disable_telemetry_events() comes too late. So qwonnx.runtime and qwonnx.export, through which every entry passes,
import this module first. A variable that the user has set stays as it is.
"""

from __future__ import annotations

import logging
import os
import sys

# Each is read once, when the library is imported.
SWITCHES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")

if "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ:
    logging.getLogger(__name__).warning(
        "onnxruntime was imported before qwonnx and may report to its maker: import qwonnx.runtime first, "
        "or set ORT_DISABLE_TELEMETRY=1"
    )
for _switch in SWITCHES:
    os.environ.setdefault(_switch, "1")
