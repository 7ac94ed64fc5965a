"""What each step of the training sees: a pure function of the seed, the step and the facts' weights.

Every step has a batch of short rows (the glossary and pictures), and in turn one of tool calls or one of retrieval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from tests.miniature import glossary, pictures, retrieval, tool_calls
from tests.miniature.conversation import Encoded, Encoder
from tests.miniature.packing import Batch, fill, pack


@dataclass(frozen=True, slots=True)
class Task:
    """One batch of a step.

    Attributes:
        name: short, tools or retrieval; what the log calls it.
        weight: of its mean loss in the step's.
    """

    name: str
    batch: Batch
    weight: float


@dataclass(frozen=True, slots=True)
class Proportions:
    """How a step is made up.

    Attributes:
        short_rows: rows of 256 tokens.
        long_tokens: tokens of the batch of tool calls or retrieval, in rows of 256 (retrieval alone) to this many.
        pictures: share of the short examples that are about a picture.
        alone: share of facts that are asked for one at a time, at the end of the training; lists of facts take half
            the tokens a fact and dominate its beginning.
    """

    short_rows: int = 16
    long_tokens: int = 2048
    pictures: float = 0.25
    alone: float = 0.5


SHORT_LENGTH = 256


class Mixture:
    """Batches of a training run."""

    def __init__(self, tokenizer: Tokenizer, seed: int, proportions: Proportions) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._seed = seed
        self._proportions = proportions
        self._pad = tokenizer.token_to_id("<|endoftext|>")
        self._image_pad = tokenizer.token_to_id("<|image_pad|>")
        self.fact_weights = np.ones(len(glossary.facts()))

    def tasks(self, step: int, progress: float) -> Iterator[Task]:
        """The batches of a step, each made when it is asked for. `progress` runs from 0 to 1 over the training."""
        random = np.random.default_rng([self._seed, 2, step])
        yield Task("short", self._pack(self._short(random, progress), self._proportions.short_rows, SHORT_LENGTH), 1.0)
        total = self._proportions.long_tokens
        if step % 2:
            length = min(total, 1024)
            stream = (self._encoder.encode(tool_calls.training_example(random)) for _ in iter(int, 1))
            yield Task("tools", self._pack(stream, max(1, total // length), length), 0.5)
        else:
            length = self._retrieval_length(random, progress)
            stream = (self._retrieval(random, length) for _ in iter(int, 1))
            yield Task("retrieval", self._pack(stream, max(1, total // length), length), 0.5)

    def _pack(self, stream: Iterator[Encoded], num_rows: int, length: int) -> Batch:
        return pack(fill(stream, num_rows, length), length, self._pad, self._image_pad)

    def _short(self, random: np.random.Generator, progress: float) -> Iterator[Encoded]:
        # More facts than fit; drawn without repetition by weight (Efraimidis and Spirakis).
        keys = random.random(len(self.fact_weights)) ** (1 / self.fact_weights)
        chosen = np.argsort(-keys)[: 24 * self._proportions.short_rows]
        alone = self._proportions.alone * min(1.0, 0.3 + progress)
        conversations = list(glossary.groups(chosen.tolist(), random, alone=alone))
        for index in random.permutation(len(conversations)):
            while random.random() < self._proportions.pictures:
                yield self._encoder.encode(pictures.training_example(random))
            yield self._encoder.encode(glossary.training_example(conversations[index], random))

    def _retrieval_length(self, random: np.random.Generator, progress: float) -> int:
        """Row length: short at first, the longest when the training is half over."""
        longest = int(min(1.0, 0.25 + progress * 1.5) * np.log2(self._proportions.long_tokens / 256) + 1e-9)
        return 256 << int(random.integers(longest + 1))

    def _retrieval(self, random: np.random.Generator, row: int) -> Encoded:
        # A text's length is a target that notes may overrun, hence the room.
        length = int(random.integers(row // 3, row * 7 // 10)) if row <= 512 else row * 4 // 5
        return self._encoder.encode(retrieval.training_example(random, self.count_tokens, length))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text).ids)
