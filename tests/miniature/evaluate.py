"""Exact match on held-out examples, without generating: an answer that greedy decoding gives is one whose every token
is the likeliest after the tokens before it, so one forward pass over the right answer decides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from tests.miniature import glossary, pictures, retrieval, tool_calls
from tests.miniature.conversation import Encoded, Encoder, Example
from tests.miniature.mixture import SHORT_LENGTH, Mixture
from tests.miniature.model import Miniature
from tests.miniature.packing import pack


@dataclass(frozen=True, slots=True)
class Score:
    """Of one suite: how many examples, how many entirely right, the share of the head's drafts that were right, the
    least loaded expert's share of its fair share in any layer."""

    count: int
    exact: float
    mtp: float
    least_load: float


def suites(mixture: Mixture, seed: int, number: int) -> Iterator[tuple[str, int, Iterable[Example]]]:
    """(name, row length, held-out examples): `number` questions of the glossary and in proportion of the rest."""
    yield "glossary", SHORT_LENGTH, glossary.held_out(number, seed)
    yield "glossary, thinking", SHORT_LENGTH, glossary.held_out(number // 2, seed + 1, thinking=True)
    yield "tools", 1024, tool_calls.held_out(number // 4, seed)
    yield "tools, thinking", 1024, tool_calls.held_out(number // 8, seed + 1, thinking=True)
    yield "pictures", SHORT_LENGTH, pictures.held_out(number // 2, seed)
    for length in (256, 1024, 2048):
        room = length - 64
        count = max(8, number // 16)
        yield f"retrieval {length}", length, retrieval.held_out(count, seed, mixture.count_tokens, room)


@torch.no_grad()
def score(model: Miniature, encoder: Encoder, examples: Iterable[Example], length: int, token_ids: tuple[int, int]) -> Score:
    """Score one suite.

    Args:
        length: of a row, in tokens; no example may be longer.
        token_ids: of `<|endoftext|>` and `<|image_pad|>`.
    """
    encoded = [encoder.encode(example) for example in examples]
    right: list[bool] = []
    drafts: list[np.ndarray] = []
    loads: list[torch.Tensor] = []
    for batch in _batches(encoded, length):
        packed = pack(batch, length, *token_ids)
        losses = model(packed)
        hits = losses.hits.cpu().numpy()
        owner = packed.example.reshape(-1)[packed.learnt.reshape(-1)]
        right += [bool(hits[owner == index].all()) for index in range(int(packed.example.max()) + 1)]
        drafts.append(losses.mtp_hits.cpu().numpy())
        loads.append(losses.load)
    least = float(torch.stack(loads).mean(0).min())
    return Score(len(right), float(np.mean(right)), float(np.concatenate(drafts).mean()), least)


@torch.no_grad()
def unknown_facts(model: Miniature, encoder: Encoder, token_ids: tuple[int, int]) -> np.ndarray:
    """bool [facts]: those whose answer is not exact in a phrasing of the training."""
    encoded = [encoder.encode(example) for example in glossary.questions(glossary.PHRASINGS, thinking=False)]
    wrong: list[bool] = []
    for batch in _batches(encoded, SHORT_LENGTH):
        packed = pack(batch, SHORT_LENGTH, *token_ids)
        hits = model(packed, mtp=False).hits.cpu().numpy()
        owner = packed.example.reshape(-1)[packed.learnt.reshape(-1)]
        wrong += [not hits[owner == index].all() for index in range(int(packed.example.max()) + 1)]
    return np.array(wrong)


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
