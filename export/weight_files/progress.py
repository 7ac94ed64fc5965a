"""The progress of an export, as the pipeline and its weight stage report it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """One report. Stages come in this order; a stage without work is left out:

    "download"  counts bytes of files that the hub's cache lacks
    "trace"     no total
    "calibrate" counts layers
    "verify"    counts the bytes that an interrupted export has written, while they are hashed again
    "weights"   counts bytes of the checkpoint, with those from before an interruption
    "finish"    writes the graph and the manifest; counts all bytes of the checkpoint
    """

    stage: str
    done_bytes: int
    total_bytes: int
    resumed_bytes: int = 0  # part of done_bytes in "weights", from before the interruption
    peak_bytes: int = 0  # of tensors in flight, the most so far
