"""Checkpoint -> artifact. The exporter is imported on first use: opening an artifact needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qwonnx.runtime import telemetry as telemetry  # first: the packages of an export read its switches when imported

if TYPE_CHECKING:
    from qwonnx.export.optimum_entry import main_export as main_export
    from qwonnx.export.pipeline import ExportOptions as ExportOptions
    from qwonnx.export.pipeline import export_checkpoint as export_checkpoint

__all__ = ["ExportOptions", "export_checkpoint", "main_export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "optimum_entry" if name == "main_export" else "pipeline"
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
