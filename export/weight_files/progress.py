"""How far an export has come, as the pipeline and its weight stage report it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """One report. Stages come in this order, and only those that there is something to do for:

    "trace"     no total
    "calibrate" counts layers
    "verify"    counts the bytes that an interrupted export has written, while they are hashed again
    "weights"   counts bytes of the checkpoint, those included that were done before an interruption
    "finish"    everything is done but the graph and the manifest; counts all bytes of the checkpoint
    """

    stage: str
    done_bytes: int
    total_bytes: int
    resumed_bytes: int = 0  # of done_bytes in "weights": done before the interruption, and no measure of speed
    peak_bytes: int = 0  # of tensors in flight, the most so far
