"""The numbers of a verification, for tests that look at nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwonnx.export.evaluation.verify import VerificationReport
from qwonnx.export.verification.verification import VerificationOptions, verify_artifact


def verified(artifact: Path, checkpoint: Path, adapters: Sequence[Path] = ()) -> VerificationReport:
    """Compare an artifact with its checkpoint."""
    report = verify_artifact(artifact, checkpoint, VerificationOptions(adapters=tuple(adapters))).report
    assert report is not None
    return report
