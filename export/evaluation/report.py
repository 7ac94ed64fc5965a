"""The results of an evaluation. The JSON form has the fields of these dataclasses, and changes with SCHEMA_VERSION."""

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
    """The model that was evaluated.

    kind: "artifact" or "checkpoint".
    id: an artifact's id, a hub checkpoint's commit; None for a local checkpoint.
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
    """The suite of questions: num_chosen of the file's num_questions were chosen."""

    name: str
    sha256: str
    num_questions: int
    num_chosen: int


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a group of questions.

    num_right of num_answered were right, and exact is their share; num_cut_off reached their limit and count as wrong.
    perplexity and likeliest (the share of tokens that were the likeliest) are over the num_tokens tokens of the
    expected answers, each predicted after the prompt and the expected tokens before it. None: there are no values.
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
    """The score of a task's questions in one mode."""

    task: str
    thinking: bool
    score: Score


@dataclass(frozen=True, slots=True)
class LanguageScore:
    """The score of the questions of all tasks in a language."""

    language: str
    score: Score


@dataclass(frozen=True, slots=True)
class Skipped:
    """The number of questions that were not asked, and the reason, which follows "questions" in a sentence."""

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

    entropy_bits: entropy of the distribution of choices over experts.
    entropy_share: entropy_bits / log2(experts), 1 if all experts are chosen equally often.
    least_share: choices of the least used expert, as a share of choices / experts.
    """

    layer: int
    entropy_bits: float
    entropy_share: float
    least_share: float


@dataclass(frozen=True, slots=True)
class ExpertUsage:
    """Use of experts in the predictions of num_tokens tokens: of the expected answers or, without a suite, the text."""

    num_experts: int
    num_experts_per_tok: int
    num_tokens: int
    layers: tuple[LayerUsage, ...]


@dataclass(frozen=True, slots=True)
class MtpScore:
    """Drafts of one token in the expected answers or the text; one is accepted if the model would write the same."""

    num_drafted: int
    num_accepted: int
    acceptance: float | None


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The whole report. A part that is None was not requested or is not available: notes then say why."""

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
    """From the number of choices of each expert, int64 [experts], which are not all zero."""
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
    """From counts [layers, experts]; None if no expert was chosen."""
    if not num_tokens:
        return None
    layers: Sequence[LayerUsage] = [layer_usage(layer, row) for layer, row in enumerate(counts)]
    return ExpertUsage(counts.shape[1], int(counts[0].sum()) // num_tokens, num_tokens, tuple(layers))
