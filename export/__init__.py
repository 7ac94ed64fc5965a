"""Checkpoint -> artifact. `export_checkpoint` is imported on first use, so that opening an artifact needs no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwonnx.export.pipeline import ExportOptions as ExportOptions
    from qwonnx.export.pipeline import export_checkpoint as export_checkpoint

__all__ = ["ExportOptions", "export_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from qwonnx.export import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
