"""Interface of a model under evaluation: it answers prompts, and it scores given answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwonnx.export.errors import EvaluationError
from qwonnx.export.evaluation.report import ModelRow
from qwonnx.export.evaluation.suite import Question
from qwonnx.runtime.errors import TemplateError
from qwonnx.runtime.text.chat_prompt import ChatModel, render_chat
from qwonnx.runtime.text.template_text import TemplateText, own_spans
from qwonnx.runtime.text.tokenizer import Tokenizer


class SkippedError(Exception):
    """A subject cannot be asked a question; the message follows "questions" in a sentence."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A subject's input, and the expected answer.

    token_ids: of the prompt, at least one.
    answer_ids: of the expected answer, with its end token; empty if the template does not show them.
    thinking_open: the prompt ends inside <think>.
    max_tokens: limit of the answer.
    pictures: the output of a checkpoint's image processor, by the names of the model's arguments.
    """

    token_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    thinking_open: bool = False
    max_tokens: int = 0
    pictures: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A subject's answer. is_complete: it ended by itself, not at max_tokens."""

    text: str
    num_tokens: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Drafts:
    """How many tokens a draft head proposed, and how many of them the model itself would have written."""

    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class Scored:
    """A subject's predictions of an expected answer of n tokens, each made after the tokens before it.

    surprise: float64 [n], -log p of each token, in nats.
    hits: bool [n], whether it was the likeliest.
    expert_counts: int64 [layers, experts], how often those n predictions used each expert; None without experts.
    drafts: None without a draft head.
    """

    surprise: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]
    expert_counts: npt.NDArray[np.int64] | None
    drafts: Drafts | None


class Subject(Protocol):
    """An artifact or a checkpoint. Greedy, and deterministic for the same prompts in the same order."""

    @property
    def row(self) -> ModelRow:
        """The subject's row of the report."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def notes(self) -> list[str]:
        """Parts of the evaluation that were not possible; complete at the end."""

    def prompt(self, question: Question, max_tokens: int | None) -> Prompt:
        """Render a question.

        Args:
            question: of the suite.
            max_tokens: of the answer; None: twice the expected answer's plus 64.

        Raises:
            SkippedError: the subject cannot be asked this question.
            EvaluationError: the chat template refuses it.
        """

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Answers with the index of their prompt, in the order in which they finish."""

    def score(self, prompts: Sequence[Prompt]) -> Iterator[Scored]:
        """Scores of the expected answers, in the order of the prompts."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A question: the prompt's tokens, and the expected answer as the template writes it, empty if it does not."""

    token_ids: list[int]
    answer: TemplateText
    thinking_open: bool


def render(model: ChatModel, question: Question) -> Rendered:
    """Apply the chat template with and without the expected answer.

    Raises:
        EvaluationError: there is no template, or it refuses the conversation.
    """
    switch = {"enable_thinking": question.thinking}
    try:
        chat = render_chat(model, question.messages, question.tools, switch)
        assert model.chat_template is not None
        whole = model.chat_template.render(
            [*question.messages, question.expected],
            tools=question.tools or None,
            add_generation_prompt=False,
            **switch,
        )
    except TemplateError as error:
        raise EvaluationError(f"the question of line {question.line} cannot be rendered: {error}") from error
    answer = TemplateText(whole[len(chat.text) :], own_spans(whole[len(chat.text) :]))
    return Rendered(chat.token_ids, answer if whole.startswith(chat.text) else TemplateText(), chat.thinking_open)


def answer_tokens(tokenizer: Tokenizer, answer: TemplateText, end_token_ids: frozenset[int]) -> tuple[int, ...]:
    """Tokens of an expected answer up to the one that ends it."""
    ids = tokenizer.encode_chat(answer).token_ids
    end = next((place for place, token in enumerate(ids) if token in end_token_ids), len(ids))
    return tuple(ids[: end + 1])


def settle_max_tokens(num_prompt: int, num_answer: int, max_tokens: int | None, longest: int) -> int:
    """The limit of an answer's tokens: max_tokens, or twice the expected number plus 64, within the context.

    Raises:
        SkippedError: prompt and expected answer are longer than the model's context.
    """
    if num_prompt + max(num_answer, 1) > longest:
        raise SkippedError(f"longer than the model's context of {longest:,} tokens")
    return min(max_tokens if max_tokens is not None else 2 * num_answer + 64, longest - num_prompt)
