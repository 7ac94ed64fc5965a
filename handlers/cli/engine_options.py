"""Engine settings of the commands: options override QWONNX_* variables, and these override defaults."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.settings import RuntimeSettings

KernelsOption = Annotated[
    Kernels | None,
    typer.Option(help="Kernels of the graph's own operators; by default native ones if they can be loaded."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Where it runs: cpu, cuda, cuda:1, ..., tensorrt, rtx; by default the first that the artifact is for."
    ),
]


def runtime_settings(**options: int | str | bool | None) -> RuntimeSettings:
    """Settings from the environment, changed by the given options.

    Raises:
        SettingsError: a value is malformed or out of range.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(RuntimeSettings.from_environment(), **given)
