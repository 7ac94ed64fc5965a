"""Exact match on held-out examples, without generation.

Greedy decoding gives an answer if each of its tokens is the likeliest after the tokens before it. So one forward pass
over the right answer decides the match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from infra.miniature import (
    glossary,
    pictures,
    retrieval,
    tool_calls,
)
from infra.miniature.conversation import Encoded, Example
from infra.miniature.mixture import SHORT_LENGTH, Mixture
from infra.miniature.model import Losses, Miniature
from infra.miniature.packing import Batch

TRAINED_LENGTHS = (256, 1024, 2048)  # of retrieval's texts, in tokens


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one suite."""

    count: int  # of examples
    exact: float  # share of answers that are entirely right
    mtp: float  # share of the head's drafts that are right
    least_load: float  # of the least loaded expert in any layer, as a share of its fair share


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers of held-out examples of each kind.

    Attributes:
        retrieval: by the length of its texts in tokens, question and answer included.
    """

    glossary: int
    glossary_thinking: int
    tools: int
    tools_thinking: int
    pictures: int
    retrieval: Mapping[int, int]

    @classmethod
    def in_proportion(cls, number: int, lengths: Iterable[int] = TRAINED_LENGTHS) -> Numbers:
        """`number` questions of the glossary, and the others in proportion."""
        retrieval = dict.fromkeys(lengths, max(8, number // 16))
        return cls(number, number // 2, number // 4, number // 8, number // 2, retrieval)


def suites(mixture: Mixture, seed: int, numbers: Numbers) -> Iterator[tuple[str, int, Iterable[Example]]]:
    """(name, row length, held-out examples)."""
    yield "glossary", SHORT_LENGTH, glossary.held_out(numbers.glossary, seed)
    yield "glossary, thinking", SHORT_LENGTH, glossary.held_out(numbers.glossary_thinking, seed + 1, thinking=True)
    yield "tools", 1024, tool_calls.held_out(numbers.tools, seed)
    yield "tools, thinking", 1024, tool_calls.held_out(numbers.tools_thinking, seed + 1, thinking=True)
    yield "pictures", SHORT_LENGTH, pictures.held_out(numbers.pictures, seed)
    for length, count in numbers.retrieval.items():
        room = length - 64
        yield f"retrieval {length}", length, retrieval.held_out(count, seed, mixture.count_tokens, room)


@torch.no_grad()
def score(model: Miniature, mixture: Mixture, examples: Iterable[Example], length: int) -> Score:
    """Score one suite with a model in eval mode, in rows of `length` tokens; no example may be longer."""
    right: list[bool] = []
    drafts: list[np.ndarray] = []
    loads: list[torch.Tensor] = []
    for rows in _batches([mixture.encoder.encode(example) for example in examples], length):
        packed = mixture.pack(rows, length)
        losses = model(packed)
        right += _exact(packed, losses)
        drafts.append(losses.mtp_hits.cpu().numpy())
        loads.append(losses.load)
    least = float(torch.stack(loads).mean(0).min())
    return Score(len(right), float(np.mean(right)), float(np.concatenate(drafts).mean()), least)


@torch.no_grad()
def unknown_facts(model: Miniature, mixture: Mixture, number: int | None = None) -> np.ndarray:
    """bool [facts]: true if the answer to a training phrasing is not exact; of the first `number` facts, or all."""
    questions = islice(glossary.questions(glossary.PHRASINGS, thinking=False), number)
    encoded = [mixture.encoder.encode(question) for question in questions]
    known: list[bool] = []
    for rows in _batches(encoded, SHORT_LENGTH):
        packed = mixture.pack(rows, SHORT_LENGTH)
        known += _exact(packed, model(packed, mtp=False))
    return ~np.array(known)


def _exact(packed: Batch, losses: Losses) -> list[bool]:
    """For each example of a batch, whether all its learnt tokens were predicted."""
    hits = losses.hits.cpu().numpy()
    owner = packed.example.reshape(-1)[packed.learnt.reshape(-1)]
    return [bool(hits[owner == index].all()) for index in range(int(packed.example.max()) + 1)]


def _batches(encoded: list[Encoded], length: int) -> Iterator[list[list[Encoded]]]:
    """Rows of examples in their order, about 8,192 tokens a batch."""
    num_rows = max(1, 8192 // length)
    rows: list[list[Encoded]] = []
    stream = iter(encoded)
    pending = next(stream, None)
    while pending is not None:
        row, size = [], 0
        while pending is not None and size + len(pending.ids) <= length:
            row.append(pending)
            size += len(pending.ids)
            pending = next(stream, None)
        assert row, f"an example of {len(pending.ids) if pending else 0} tokens fits no row of {length}"
        rows.append(row)
    iterator = iter(rows)
    while batch := list(islice(iterator, num_rows)):
        yield batch
