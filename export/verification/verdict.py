"""The verdict of a verification: a pure function of what was measured and of what the artifact says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qwonnx.export.verification.bounds import ROUNDING, Bounds, bounds_of
from qwonnx.export.verification.evidence import LAYER, Evidence, PartError
from qwonnx.runtime.artifact.manifest import Manifest

# A mean above its bound by less than this may be chance.
_STANDARD_ERRORS = 2.0
WRITTEN = "written by the artifact"  # the kind of a text whose tokens the artifact drew


class Verdict(StrEnum):
    """What a verification ends in."""

    EQUAL = "equal"  # up to rounding
    QUANTISED = "quantised"  # as its recipe says
    DIFFERENT = "different"  # not the same model
    UNCLEAR = "unclear"  # the text does not tell

    @property
    def exit_status(self) -> int:
        """Of the command; 2 is for errors."""
        return {Verdict.EQUAL: 0, Verdict.QUANTISED: 0, Verdict.DIFFERENT: 1, Verdict.UNCLEAR: 3}[self]

    @property
    def words(self) -> str:
        return {
            Verdict.EQUAL: "equal up to rounding",
            Verdict.QUANTISED: "quantised as its recipe says",
            Verdict.DIFFERENT: "not the same model",
            Verdict.UNCLEAR: "cannot tell",
        }[self]


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, its reason in a sentence without full stop, and the bounds that it used (None: it needed none)."""

    verdict: Verdict
    reason: str
    bounds: Bounds | None = None

    @property
    def sentence(self) -> str:
        return f"{self.verdict.words}: {self.reason}"


def different(reason: str) -> Decision:
    """A decision before anything was computed."""
    return Decision(Verdict.DIFFERENT, reason)


def judge(evidence: Evidence, manifest: Manifest, max_kl: float | None, text: str) -> Decision:
    """Decide.

    Args:
        evidence: what was measured.
        manifest: the artifact's.
        max_kl: the user's bound of the mean KL divergence, in nats; None: the recipe's.
        text: its kind.
    """
    bounds, kl = bounds_of(manifest), evidence.mean_kl
    wrong = next((part for part in evidence.parts if not part.error <= bounds.of_part(part.name)), None)
    if wrong is not None:
        return Decision(Verdict.DIFFERENT, _wrong_part(wrong, bounds), bounds)
    if evidence.merge_error is not None and not evidence.merge_error <= ROUNDING:
        reason = f"peft merges the adapters otherwise: logits differ by {evidence.merge_error:.1e} of their spread"
        return Decision(Verdict.DIFFERENT, reason, bounds)
    # `not <=`, so that a KL that is not a number fails as well.
    if max_kl is not None and not kl <= max_kl:
        return Decision(Verdict.DIFFERENT, f"the mean KL divergence {kl:.3e} exceeds {max_kl:g}", bounds)
    if _is_equal(evidence):
        return Decision(Verdict.EQUAL, _differences(evidence), bounds)
    if bounds.is_exact:
        return Decision(Verdict.DIFFERENT, f"{bounds.recipe} rounds nothing, and {_differences(evidence)}", bounds)
    layers = _of_layers(evidence, bounds)
    if text == WRITTEN and evidence.text.is_foreign:
        return Decision(
            Verdict.DIFFERENT,
            f"the checkpoint finds the artifact's own text absurd ({evidence.text.surprise:.1f} nats a token, and"
            f" {evidence.text.entropy:.1f} on texts that it expects)",
            bounds,
        )
    if evidence.text.is_flat or evidence.text.is_foreign:
        if layers is None:
            return Decision(Verdict.UNCLEAR, "the text tells nothing of predictions: give another one", bounds)
        return Decision(Verdict.QUANTISED, f"{layers}; the text tells nothing of predictions", bounds)
    bound, source = (bounds.kl, f"measured for {bounds.recipe}") if max_kl is None else (max_kl, "asked for")
    shown = f"{kl:.4f} ± {evidence.kl_error:.4f} nats"
    if not kl - _STANDARD_ERRORS * evidence.kl_error <= bound:
        reason = f"the mean KL divergence is {shown}, and at most {bound:.4f} were {source}"
        if layers is None:
            return Decision(Verdict.DIFFERENT, reason, bounds)
        return Decision(
            Verdict.UNCLEAR, f"{reason}, though {layers}: evaluate the artifact on your task (qwonnx eval)", bounds
        )
    reason = f"KL {shown}, within the bound {bound:.4f} {source}"
    return Decision(Verdict.QUANTISED, reason if layers is None else f"{reason}; {layers}", bounds)


def _is_equal(evidence: Evidence) -> bool:
    """Medians, because a token whose experts tie may go to another one."""
    return evidence.logit_error <= ROUNDING and all(part.median <= ROUNDING for part in evidence.parts)


def _differences(evidence: Evidence) -> str:
    return (
        f"logits differ by {evidence.logit_error:.1e} of their spread, the mean KL divergence is"
        f" {evidence.mean_kl:.1e} nats"
    )


def _of_layers(evidence: Evidence, bounds: Bounds) -> str | None:
    layers = [part.error for part in evidence.parts if part.name.startswith(LAYER)]
    if not layers:
        return None
    return f"on equal inputs its layers differ by {max(layers):.2%} at most, within {bounds.layer:.2%}"


def _wrong_part(part: PartError, bounds: Bounds) -> str:
    name = part.name if part.name.startswith(LAYER) else f"the {part.name}"
    bound = bounds.of_part(part.name)
    return (
        f"{name} differs by {part.error:.2%} on equal inputs, and {bounds.recipe} by {bound:.2%} at most; the parts"
        " before it are right"
    )
