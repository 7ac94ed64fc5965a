"""The result of a verification, and its JSON form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwonnx.export.evaluation.verify import VerificationReport
from qwonnx.export.verification.evidence import Evidence
from qwonnx.export.verification.predictions import Float64
from qwonnx.export.verification.verdict import Decision


@dataclass(frozen=True, slots=True)
class Verification:
    """The result. evidence is None if the models already differ in what needs no computing, or the files are damaged.

    num_tokens: that both models read.
    text: "given", "built-in" or "written by the artifact"; of the last one only the artifact's own tokens are compared.
    notes: for display.
    """

    decision: Decision
    evidence: Evidence | None
    num_tokens: int
    text: str | None
    notes: tuple[str, ...]

    @property
    def report(self) -> VerificationReport | None:
        """The difference of predictions, as numbers."""
        if self.evidence is None:
            return None
        predictions = self.evidence.predictions
        return VerificationReport(
            num_tokens=self.num_tokens,
            max_logit_difference=predictions.max_logit_difference,
            mean_kl=self.evidence.mean_kl,
            top1_agreement=float(predictions.same_token.mean()),
            perplexity_checkpoint=_exponential(predictions.surprise_checkpoint),
            perplexity_artifact=_exponential(predictions.surprise_artifact),
            layer_peaks=self.evidence.layer_peaks,
        )

    def to_json(self) -> dict[str, Any]:
        """The report's fields, null where nothing was computed, and the verdict with what it rests on."""
        bounds, evidence, report = self.decision.bounds, self.evidence, self.report
        numbers = {field.name: None for field in dataclasses.fields(VerificationReport)}
        return {
            **(numbers if report is None else dataclasses.asdict(report)),
            "verdict": self.decision.verdict.value,
            "reason": self.decision.reason,
            "text": self.text,
            "bounds": bounds and dataclasses.asdict(bounds),
            "kl_error": None if evidence is None else evidence.kl_error,
            "max_kl": None if evidence is None else float(evidence.predictions.kl.max()),
            "num_compared": None if evidence is None else len(evidence.predictions.kl),
            "entropy_checkpoint": None if evidence is None else evidence.text.entropy,
            "experts_used": None if evidence is None else evidence.experts_used,
            "merge_error": None if evidence is None else evidence.merge_error,
            "parts": None if evidence is None else [dataclasses.asdict(part) for part in evidence.parts],
            "notes": self.notes,
        }


def _exponential(surprise: Float64) -> float:
    """A perplexity; infinite where a token is impossible."""
    with np.errstate(over="ignore"):
        return float(np.exp(surprise.mean())) if len(surprise) else float("nan")
