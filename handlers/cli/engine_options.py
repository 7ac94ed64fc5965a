"""Engine settings of the commands: options override QWONNX_* variables, and these override defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

from qwonnx.runtime.settings import RuntimeSettings

KERNELS_HELP = "Kernels of the graph's own operators; by default native ones if they can be loaded."


def runtime_settings(**options: int | str | bool | None) -> RuntimeSettings:
    """Settings from the environment, changed by the given options.

    Raises:
        SettingsError: a value is malformed or out of range.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(RuntimeSettings.from_environment(), **given)
