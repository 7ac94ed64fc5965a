"""What each step of the training sees: a pure function of the seed, the step and the facts' weights.

Every step has a batch of short rows (the glossary, pictures, copying); two of three have one of tool calls as well, the
others one of retrieval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from tests.miniature import copying, glossary, pictures, retrieval, tool_calls
from tests.miniature.conversation import Encoded, Encoder
from tests.miniature.packing import Batch, fill, pack
from tests.miniature.vocabulary import token_id


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
        long_tokens: tokens of the batch of tool calls, in rows of 1,024, or of retrieval, in rows of 256 to this many.
        pictures: share of the short examples that are about a picture.
        copying: share of those left that are exercises in copying, up to 45% of the training; half of it after.
        alone: share of facts that are asked for one at a time, at the end of the training; lists of facts take half
            the tokens a fact and dominate its beginning.
    """

    short_rows: int = 16
    long_tokens: int = 2048
    pictures: float = 0.35
    copying: float = 0.4
    alone: float = 0.5


SHORT_LENGTH = 256


class Mixture:
    """Batches of a training run, or what one of the processes that share it sees of them.

    Args:
        share, shares: which process, of how many. All have about as many tokens: the long batch is one's, in turn, and
            the others have more of the short rows.
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
        """The batches of a step, each made when it is asked for. `progress` runs from 0 to 1 over the training."""
        random = np.random.default_rng([self.seed, 2, step * self.shares + self.share])
        has_long = step % self.shares == self.share
        rows = self._num_short_rows(has_long)
        short = fill(self._short(random, progress, rows), rows, SHORT_LENGTH)
        # The mean over the processes of means over their rows, so weighted, is the mean over all rows.
        yield Task("short", self.pack(short, SHORT_LENGTH), rows * self.shares / self.proportions.short_rows)
        if has_long:
            yield self._long(random, step, progress)

    def _num_short_rows(self, has_long: bool) -> int:
        short, long = self.proportions.short_rows, self.proportions.long_tokens // SHORT_LENGTH
        beside_long = (short + long) // self.shares - long if self.shares > 1 else short
        return beside_long if has_long else (short - beside_long) // (self.shares - 1)

    def _long(self, random: np.random.Generator, step: int, progress: float) -> Task:
        total, weight = self.proportions.long_tokens, 0.5 * self.shares
        if step % 3:
            length = 1024
            stream = (self.encoder.encode(tool_calls.training_example(random)) for _ in iter(int, 1))
            return Task("tools", self.pack(fill(stream, max(1, total // length), length), length), weight)
        length = self._retrieval_length(random, progress)
        stream = (self._retrieval(random, length) for _ in iter(int, 1))
        return Task("retrieval", self.pack(fill(stream, max(1, total // length), length), length), weight)

    def pack(self, rows: Sequence[Sequence[Encoded]], length: int) -> Batch:
        """Rows of examples as a batch of this vocabulary."""
        return pack(rows, length, self._pad, self._image_pad)

    def _short(self, random: np.random.Generator, progress: float, rows: int) -> Iterator[Encoded]:
        # More facts than fit; drawn without repetition by weight (Efraimidis and Spirakis).
        keys = random.random(len(self.fact_weights)) ** (1 / self.fact_weights)
        chosen = np.argsort(-keys)[: 24 * rows]
        alone = self.proportions.alone * min(1.0, 0.3 + progress)
        conversations = list(glossary.groups(chosen.tolist(), random, alone=alone))
        for index in random.permutation(len(conversations)):
            while random.random() < self.proportions.pictures:
                yield self.encoder.encode(pictures.training_example(random))
            while random.random() < self.proportions.copying * (1.0 if progress < 0.45 else 0.5):
                yield self.encoder.encode(copying.training_example(random))
            yield self.encoder.encode(glossary.training_example(conversations[index], random))

    def _retrieval_length(self, random: np.random.Generator, progress: float) -> int:
        """Row length: short at first, the longest when the training is half over."""
        longest = int(min(1.0, 0.25 + progress * 1.5) * np.log2(self.proportions.long_tokens / 256) + 1e-9)
        return 256 << int(random.integers(longest + 1))

    def _retrieval(self, random: np.random.Generator, row: int) -> Encoded:
        # A text's length is a target that notes may overrun, hence the room.
        length = int(random.integers(row // 3, row * 7 // 10)) if row <= 512 else row * 4 // 5
        return self.encoder.encode(retrieval.training_example(random, self.count_tokens, length))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encoder.tokens(text))
