"""One evaluation: questions -> prompts -> answers, judged -> expected answers, scored -> the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from qwonnx.export.errors import EvaluationError
from qwonnx.export.evaluation.judge import is_right
from qwonnx.export.evaluation.measures import perplexity
from qwonnx.export.evaluation.report import (
    SCHEMA_VERSION,
    EvalReport,
    ExpertUsage,
    LanguageScore,
    MtpScore,
    Score,
    Skipped,
    SuiteRow,
    TaskScore,
    TextScore,
    expert_usage,
    share,
)
from qwonnx.export.evaluation.subject import Answer, Prompt, Scored, SkippedError, Subject
from qwonnx.export.evaluation.suite import Question, Suite

WINDOW_TOKENS = 1024
MAX_TEXT_TOKENS = 64 * WINDOW_TOKENS


@dataclass(frozen=True, slots=True)
class Text:
    """A text for which the perplexity is computed."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one question.

    skipped: the reason why it was not asked, or None.
    answer, right: the answer, and whether it is right; None and False if the question was not asked.
    scored: None if it was not asked, or if the template does not show the expected tokens.
    """

    question: Question
    skipped: str | None
    answer: Answer | None
    right: bool
    scored: Scored | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The report, and the outcomes that it sums up."""

    report: EvalReport
    outcomes: tuple[Outcome, ...]


def evaluate(
    subject: Subject,
    suite: Suite | None,
    chosen: Sequence[Question],
    text: Text | None,
    *,
    max_tokens: int | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Ask a subject the chosen questions of a suite, and let it predict a text; at least one must be given.

    Args:
        subject: the model.
        suite: the file of the questions.
        chosen: the questions of the suite to ask.
        text: at most MAX_TEXT_TOKENS of its tokens are used, in windows of WINDOW_TOKENS.
        max_tokens: of an answer; see Subject.prompt.
        on_progress: called with a short text about the current step.

    Raises:
        EvaluationError: the text has fewer than two tokens, or the model predicts values that are not numbers.
        The subject's own errors.
    """
    say = on_progress or (lambda stage: None)
    windows, text_notes = ([], []) if text is None else _windows(subject, text)
    prompts: dict[int, Prompt] = {}
    skipped: dict[int, str] = {}
    for index, question in enumerate(chosen):
        try:
            prompts[index] = subject.prompt(question, max_tokens)
        except SkippedError as error:
            skipped[index] = str(error)
    answers = _answers(subject, prompts, say)
    scorable = {index: prompt for index, prompt in prompts.items() if prompt.answer_ids}
    scored = _score(subject, [*scorable.values(), *windows], say)
    of_suite, of_text = scored[: len(scorable)], scored[len(scorable) :]
    by_index = dict(zip(scorable, of_suite, strict=True))
    outcomes = tuple(
        Outcome(
            question=question,
            skipped=skipped.get(index),
            answer=answers.get(index),
            right=index in answers and _is_right(question, answers[index], prompts[index]),
            scored=by_index.get(index),
        )
        for index, question in enumerate(chosen)
    )
    counted = of_text if suite is None else of_suite
    reasons = Counter(skipped.values())
    total = _total(outcomes)
    report = EvalReport(
        schema_version=SCHEMA_VERSION,
        qwonnx_version=version("qwonnx"),
        model=subject.row,
        suite=None if suite is None else SuiteRow(suite.name, suite.sha256, len(suite.questions), len(chosen)),
        total=None if suite is None else total,
        tasks=tuple(_tasks(outcomes)),
        languages=tuple(_languages(outcomes)),
        skipped=tuple(Skipped(reason, number) for reason, number in sorted(reasons.items())),
        text=None if text is None else _text_score(text, of_text),
        experts=_experts(counted),
        mtp=_mtp(counted),
        notes=(*_notes(total, len(prompts) - len(scorable)), *text_notes, *subject.notes),
    )
    return Evaluation(report, outcomes)


def _windows(subject: Subject, text: Text) -> tuple[list[Prompt], list[str]]:
    """The text as prompts of one token each with expected answers, and notes about it."""
    ids = tuple(subject.tokenizer.encode(text.content))
    if len(ids) < 2:
        raise EvaluationError(f"{text.name} has fewer than two tokens: give a longer text")
    notes = [f"of {text.name} the first {MAX_TEXT_TOKENS:,} tokens were read"] if len(ids) > MAX_TEXT_TOKENS else []
    starts = range(0, min(len(ids), MAX_TEXT_TOKENS), WINDOW_TOKENS)
    windows = (ids[start : min(start + WINDOW_TOKENS, MAX_TEXT_TOKENS)] for start in starts)
    return [Prompt(window[:1], window[1:]) for window in windows if len(window) > 1], notes


def _answers(subject: Subject, prompts: Mapping[int, Prompt], say: Callable[[str], None]) -> dict[int, Answer]:
    """The subject's answers, by the keys of the prompts."""
    answers: dict[int, Answer] = {}
    if prompts:
        say(f"answering {len(prompts)} questions")
        keys = list(prompts)
        for place, answer in subject.answers(list(prompts.values())):
            answers[keys[place]] = answer
            say(f"answered {len(answers)} of {len(prompts)} questions")
    return answers


def _is_right(question: Question, answer: Answer, prompt: Prompt) -> bool:
    return answer.is_complete and is_right(question, answer.text, thinking_open=prompt.thinking_open)


def _score(subject: Subject, prompts: Sequence[Prompt], say: Callable[[str], None]) -> list[Scored]:
    scored = []
    if prompts:
        say(f"scoring {len(prompts)} expected answers")
        for number, one in enumerate(subject.score(prompts), 1):
            if not np.isfinite(one.surprise).all():
                raise EvaluationError(
                    f"{subject.row.name} predicts values that are not numbers: `qwonnx inspect --verify` says whether"
                    " an artifact's files were changed; a checkpoint was damaged or its training diverged"
                )
            scored.append(one)
            say(f"scored {number} of {len(prompts)} expected answers")
    return scored


def _total(outcomes: Iterable[Outcome]) -> Score:
    outcomes = list(outcomes)
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    right = sum(outcome.right for outcome in outcomes)
    scored = [outcome.scored for outcome in outcomes if outcome.scored is not None]
    surprise, hits = _joined(scored)
    return Score(
        num_answered=len(answers),
        num_skipped=sum(outcome.skipped is not None for outcome in outcomes),
        num_right=right,
        num_cut_off=sum(not answer.is_complete for answer in answers),
        exact=share(right, len(answers)),
        num_tokens=len(surprise),
        perplexity=perplexity(surprise),
        likeliest=share(int(hits.sum()), len(hits)),
    )


def _tasks(outcomes: Sequence[Outcome]) -> Iterator[TaskScore]:
    for task, thinking in sorted({(outcome.question.task, outcome.question.thinking) for outcome in outcomes}):
        of_task = (one for one in outcomes if (one.question.task, one.question.thinking) == (task, thinking))
        yield TaskScore(task, thinking, _total(of_task))


def _languages(outcomes: Sequence[Outcome]) -> Iterator[LanguageScore]:
    for language in sorted({one.question.language for one in outcomes if one.question.language is not None}):
        yield LanguageScore(language, _total(one for one in outcomes if one.question.language == language))


def _text_score(text: Text, scored: Sequence[Scored]) -> TextScore:
    surprise, hits = _joined(scored)
    return TextScore(
        name=text.name,
        num_tokens=len(surprise),
        window_tokens=WINDOW_TOKENS,
        perplexity=perplexity(surprise),
        likeliest=share(int(hits.sum()), len(hits)),
    )


def _experts(scored: Sequence[Scored]) -> ExpertUsage | None:
    counts = [one.expert_counts for one in scored if one.expert_counts is not None]
    if not counts:
        return None
    total = np.sum(counts, axis=0)
    return expert_usage(total, sum(len(one.surprise) for one in scored))


def _mtp(scored: Sequence[Scored]) -> MtpScore | None:
    drafts = [one.drafts for one in scored if one.drafts is not None]
    if not drafts:
        return None
    drafted, accepted = sum(one.num_drafted for one in drafts), sum(one.num_accepted for one in drafts)
    return MtpScore(drafted, accepted, share(accepted, drafted))


def _notes(total: Score, num_unscored: int) -> Iterator[str]:
    if total.num_cut_off:
        yield f"{total.num_cut_off} answers were cut off at their limit, and count as wrong: see --max-tokens"
    if num_unscored:
        yield f"{num_unscored} expected answers have no perplexity: the template does not put them after the prompt"


def _joined(scored: Sequence[Scored]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Surprise and hits of all, concatenated."""
    nothing = np.empty(0), np.empty(0, bool)
    return (
        np.concatenate([nothing[0], *(one.surprise for one in scored)]),
        np.concatenate([nothing[1], *(one.hits for one in scored)]),
    )
