"""A text that the artifact writes itself, for models that a fixed text is foreign to.

Tokens are drawn as the artifact predicts them, as answers to a few questions. So for the right model the answers are as
likely as its predictions are certain; a checkpoint that finds them unlikely is another model. The questions are not
compared: a model that was trained on answers only predicts nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwonnx.export.evaluation.decoder_session import DecoderSession, Logits, TokenIds
from qwonnx.runtime.text.tokenizer import Tokenizer

WRITTEN_TOKENS = 384
_ANSWER_TOKENS = 64
_QUESTIONS = (
    "Translate to German: The train is late.",
    "What is the capital of France?",
    "Write a short story about a lighthouse.",
    "How many minutes are in three hours?",
    "Name three rivers.",
    "Explain in one sentence why the sky is blue.",
    "What is 17 + 25?",
    "Write a Python function that adds two numbers.",
)
_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A conversation: int64 [T], and the ascending positions whose next token the artifact drew."""

    token_ids: TokenIds
    drawn_after: TokenIds


def write_text(
    session: DecoderSession, tokenizer: Tokenizer, num_tokens: int, on_tokens: Callable[[int], None]
) -> WrittenText:
    """A conversation of num_tokens tokens; always the same for the same predictions.

    Raises:
        VerificationError: ONNX Runtime cannot run the graph.
    """
    random = np.random.default_rng(0)
    sequence = session.begin(num_tokens)
    end = tokenizer.token_id(_END)
    written: list[int] = []
    drawn_after: list[int] = []
    turn = 0
    while len(written) < num_tokens:
        question = tokenizer.encode(("\n" if turn else "") + _TURN.format(_QUESTIONS[turn % len(_QUESTIONS)]))
        coming, turn = question[: num_tokens - len(written)], turn + 1
        for _ in range(1 + _ANSWER_TOKENS):
            read = sequence.extend(np.array(coming, np.int64), np.array([len(coming) - 1]))
            written += coming
            on_tokens(len(written))
            if coming == [end] or len(written) == num_tokens:
                break
            drawn_after.append(len(written) - 1)
            coming = [_draw(read.logits[0, : tokenizer.num_tokens], random)]
        else:
            drawn_after.pop()  # the last token drawn was not read
    return WrittenText(np.array(written, np.int64), np.array(drawn_after, np.int64))


def _draw(logits: Logits, random: np.random.Generator) -> int:
    """A token, as likely as the logits [n] say."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))
