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
AdapterOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|URL",
        help="A LoRA adapter that answers; a URL ends with #sha256=. The artifact must have been exported with"
        " --runtime-adapters.",
    ),
]
_ADAPTER = "adapter"


def name_of(adapter: str | None) -> str:
    """The name under which the engine has the adapter of an option; empty without one."""
    return "" if adapter is None else _ADAPTER


def runtime_settings(*, adapter: str | None = None, **options: int | str | bool | None) -> RuntimeSettings:
    """Settings from the environment, changed by the given options.

    Args:
        adapter: the place of the only adapter; the engine has it under name_of().
        options: fields of RuntimeSettings; None: not given.

    Raises:
        SettingsError: a value is malformed or out of range.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if adapter is not None:
        given["adapters"] = (f"{_ADAPTER}={adapter}",)
    return dataclasses.replace(RuntimeSettings.from_environment(), **given)
