"""What an evaluation found, as numbers. The JSON form is these dataclasses, field by field, and changes with
SCHEMA_VERSION only."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What was evaluated.

    kind: "artifact" or "checkpoint".
    id: an artifact's id, a hub checkpoint's commit; None of a local checkpoint.
    weights: an artifact's preset, a checkpoint's dtype or format.
    max_num_seqs: questions that were answered at once.
    """

    kind: str
    name: str
    id: str | None
    weights: str
    target: str
    activations: str
    kv: str
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """Which questions: num_chosen of the file's num_questions were to be asked."""

    name: str
    sha256: str
    num_questions: int
    num_chosen: int


@dataclass(frozen=True, slots=True)
class Score:
    """Of a group of questions.

    num_right of num_answered were right, exact is their share; num_cut_off were not complete at their limit, and wrong.
    perplexity and likeliest (the share of tokens that were the likeliest) are of the num_tokens tokens of the expected
    answers, each predicted after the prompt and the expected tokens before it. None: of nothing.
    """

    num_answered: int
    num_skipped: int
    num_right: int
    num_cut_off: int
    exact: float | None
    num_tokens: int
    perplexity: float | None
    likeliest: float | None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Of a task's questions in one mode."""

    task: str
    thinking: bool
    score: Score


@dataclass(frozen=True, slots=True)
class LanguageScore:
    """Of the questions in a language, whatever their task."""

    language: str
    score: Score


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many questions were not asked, and why: the reason follows "questions" in a sentence."""

    reason: str
    num_questions: int


@dataclass(frozen=True, slots=True)
class TextScore:
    """Perplexity of a text, read in windows of window_tokens; num_tokens were predicted."""

    name: str
    num_tokens: int
    window_tokens: int
    perplexity: float | None
    likeliest: float | None


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """How evenly a layer uses its experts.

    entropy_bits: of the distribution of choices over experts; entropy_share: of log2(experts), which is 1 if all are
    chosen equally often.
    least_share: how often the least used one was chosen, as a share of choices / experts.
    """

    layer: int
    entropy_bits: float
    entropy_share: float
    least_share: float


@dataclass(frozen=True, slots=True)
class ExpertUsage:
    """By the predictions of num_tokens tokens of the expected answers; without a suite, of the text."""

    num_experts: int
    num_experts_per_tok: int
    num_tokens: int
    layers: tuple[LayerUsage, ...]


@dataclass(frozen=True, slots=True)
class MtpScore:
    """Drafts of one token, in the expected answers or the text, that the model itself would have written."""

    num_drafted: int
    num_accepted: int
    acceptance: float | None


@dataclass(frozen=True, slots=True)
class EvalReport:
    """All of it. What is None was not asked for, or cannot be had: notes then say why."""

    schema_version: int
    qwonnx_version: str
    model: ModelRow
    suite: SuiteRow | None
    total: Score | None
    tasks: tuple[TaskScore, ...]
    languages: tuple[LanguageScore, ...]
    skipped: tuple[Skipped, ...]
    text: TextScore | None
    experts: ExpertUsage | None
    mtp: MtpScore | None
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def layer_usage(layer: int, counts: npt.NDArray[np.int64]) -> LayerUsage:
    """Of how often each expert was chosen, int64 [experts], at least one at all."""
    num_experts, num_choices = len(counts), int(counts.sum())
    used = counts[counts > 0] / num_choices
    bits = abs(float((used * np.log2(used)).sum()))
    return LayerUsage(
        layer=layer,
        entropy_bits=bits,
        entropy_share=bits / math.log2(num_experts) if num_experts > 1 else 1.0,
        least_share=float(counts.min()) * num_experts / num_choices,
    )


def expert_usage(counts: npt.NDArray[np.int64], num_tokens: int) -> ExpertUsage | None:
    """Of counts [layers, experts]; None if no expert was chosen."""
    if not num_tokens:
        return None
    layers: Sequence[LayerUsage] = [layer_usage(layer, row) for layer, row in enumerate(counts)]
    return ExpertUsage(counts.shape[1], int(counts[0].sum()) // num_tokens, num_tokens, tuple(layers))
