"""The progress of a verification."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VerificationProgress:
    """One report. Stages come in this order; one that an earlier process has done is left out:

    "hash"      counts bytes of the artifact's weight files, compared with the manifest
    "artifact"  counts tokens that the artifact has read
    "write"     counts tokens that the artifact has written, if the fixed text is foreign to it
    "layers"    counts the checkpoint's layers
    "head"      counts rows of the checkpoint's head
    """

    stage: str
    done: int
    total: int
    resumed: int = 0  # part of done, from before an interruption
