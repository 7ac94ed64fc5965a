"""The data of each training step: a pure function of the seed, the step and the facts' weights.

Every step has a batch of short rows (the glossary, pictures, copying). Three of four steps also have a batch of tool
calls, and the others a batch of retrieval. At first two thirds of a step's tokens are short rows; later steps are
larger, and half of their tokens are short rows. The glossary needs many repetitions, and the model can learn the other
tasks only later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from infra.miniature import (
    copying,
    glossary,
    pictures,
    retrieval,
    tool_calls,
)
from infra.miniature.conversation import Encoded, Encoder
from infra.miniature.packing import Batch, fill, pack
from infra.miniature.vocabulary import token_id


@dataclass(frozen=True, slots=True)
class Task:
    """One batch of a step.

    Attributes:
        name: short, tools or retrieval, as in the log.
        weight: of its mean loss in the step's.
    """

    name: str
    batch: Batch
    weight: float


@dataclass(frozen=True, slots=True)
class Proportions:
    """The parts of a step.

    Attributes:
        short_rows: rows of 256 tokens.
        long_tokens: tokens of the batch of tool calls, in rows of 1,024, or of retrieval, in rows of 256 up to a
            process's share of this number; doubled after 45% of the training.
        pictures: share of the short examples that are about a picture; halved in the last fifth of the training.
        copying: share of the other short examples that are exercises in copying; halved in the same way.
        alone: share of facts that are asked for one at a time, at the end of the training. Lists of facts take half the
            tokens for each fact, and dominate the beginning of the training.
    """

    short_rows: int = 16
    long_tokens: int = 2048
    pictures: float = 0.5
    copying: float = 0.3
    alone: float = 0.5


SHORT_LENGTH = 256
_TOOLS_LENGTH = 1024
_LATE = 0.45  # of the training
_LAST = 0.8  # of the training: from here on the glossary, the largest task, gets more


class Mixture:
    """Batches of a training run, or the share of one of its processes.

    Args:
        share, shares: index and number of the processes; each has its own examples.
    """

    def __init__(
        self, tokenizer: Tokenizer, seed: int, proportions: Proportions, share: int = 0, shares: int = 1
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self.seed = seed
        self.proportions = proportions
        self.share, self.shares = share, shares
        self._pad = token_id(tokenizer, "<|endoftext|>")
        self._image_pad = token_id(tokenizer, "<|image_pad|>")
        self.fact_weights = np.ones(len(glossary.facts()))

    def tasks(self, step: int, progress: float) -> Iterator[Task]:
        """The batches of a step, each made on request. `progress` runs from 0 to 1 over the training."""
        random = np.random.default_rng([self.seed, 2, step * self.shares + self.share])
        rows, tokens = self._sizes(progress)
        short = fill(self._short(random, progress, rows), rows, SHORT_LENGTH)
        yield Task("short", self.pack(short, SHORT_LENGTH), 1.0)
        weight = tokens / (rows * SHORT_LENGTH)
        if step % 4:
            yield self._long("tools", self._tool_calls(random), _TOOLS_LENGTH, tokens, weight)
        else:
            length = self._retrieval_length(random, progress, tokens)
            stream = (self._retrieval(random, length) for _ in iter(int, 1))
            yield self._long("retrieval", stream, length, tokens, weight)

    def _sizes(self, progress: float) -> tuple[int, int]:
        """Short rows, and tokens of the long batch, of this process."""
        rows, tokens = self.proportions.short_rows, self.proportions.long_tokens
        if progress >= _LATE:
            tokens *= 2
        return max(1, rows // self.shares), tokens // self.shares

    def _long(self, name: str, stream: Iterator[Encoded], length: int, tokens: int, weight: float) -> Task:
        return Task(name, self.pack(fill(stream, max(1, tokens // length), length), length), weight)

    def pack(self, rows: Sequence[Sequence[Encoded]], length: int) -> Batch:
        """Rows of examples as a batch of this vocabulary."""
        return pack(rows, length, self._pad, self._image_pad)

    def _short(self, random: np.random.Generator, progress: float, rows: int) -> Iterator[Encoded]:
        # More facts than fit; drawn without repetition by weight (Efraimidis and Spirakis).
        keys = random.random(len(self.fact_weights)) ** (1 / self.fact_weights)
        chosen = np.argsort(-keys)[: 24 * rows]
        alone = self.proportions.alone * min(1.0, 0.3 + progress)
        conversations = list(glossary.groups(chosen.tolist(), random, alone=alone))
        share = 1.0 if progress < _LAST else 0.5
        for index in random.permutation(len(conversations)):
            while random.random() < share * self.proportions.pictures:
                yield self.encoder.encode(pictures.training_example(random))
            while random.random() < share * self.proportions.copying:
                yield self.encoder.encode(copying.training_example(random))
            yield self.encoder.encode(glossary.training_example(conversations[index], random))

    def _tool_calls(self, random: np.random.Generator) -> Iterator[Encoded]:
        while True:
            example = self.encoder.encode(tool_calls.training_example(random))
            if len(example.ids) <= _TOOLS_LENGTH:
                yield example

    def _retrieval_length(self, random: np.random.Generator, progress: float, tokens: int) -> int:
        """Row length: short at first, and up to `tokens` after half of the training."""
        longest = int(min(1.0, 0.25 + progress * 1.5) * np.log2(tokens / 256) + 1e-9)
        return 256 << int(random.integers(longest + 1))

    def _retrieval(self, random: np.random.Generator, row: int) -> Encoded:
        # Notes may exceed the target length of a text, so it is less than the row.
        length = int(random.integers(row // 3, row * 7 // 10)) if row <= 512 else row * 4 // 5
        return self.encoder.encode(retrieval.training_example(random, self.count_tokens, length))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encoder.tokens(text))
