"""Rows hold whole examples, and each token has the index of its example and its position."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest
from tokenizers import Tokenizer

from infra.miniature import glossary, pictures
from infra.miniature.conversation import Encoded
from infra.miniature.mixture import Mixture, Proportions
from infra.miniature.packing import fill, rope_positions
from infra.miniature.prefetch import Prefetcher


def encoded(size: int) -> Encoded:
    return Encoded(np.arange(size, dtype=np.int32), np.ones(size, bool), ())


def test_rows_are_filled_until_examples_no_longer_fit() -> None:
    rows = fill(repeat(encoded(30)), 3, 100)
    assert [len(row) for row in rows] == [3, 3, 3]
    with pytest.raises(ValueError, match="101 tokens fits no row of 100"):
        fill(repeat(encoded(101)), 3, 100)


def test_positions_count_from_each_examples_start_and_pictures_take_their_larger_side() -> None:
    is_picture = np.array([False, *[True] * 8, False, False])
    positions = rope_positions(is_picture, [(4, 8)])  # two rows of four
    assert positions.T.tolist() == [
        [0, 0, 0],
        *([1, 1 + row, 1 + column] for row in range(2) for column in range(4)),
        [5, 5, 5],
        [6, 6, 6],
    ]


def test_a_batch_says_which_token_is_whose(mixture: Mixture) -> None:
    random = np.random.default_rng(0)
    first = mixture.encoder.encode(pictures.training_example(random))
    second = mixture.encoder.encode(next(glossary.held_out(1, 0)))
    batch = mixture.pack([[first, second], [second]], 256)
    a, b = len(first.ids), len(second.ids)
    np.testing.assert_array_equal(batch.ids[0, a : a + b], second.ids)
    np.testing.assert_array_equal(batch.learnt[0, a : a + b], second.learnt)
    assert batch.example[0].tolist() == [0] * a + [1] * b + [-1] * (256 - a - b)
    assert batch.example[1].tolist() == [2] * b + [-1] * (256 - b)
    assert batch.sequence[0, a] == 1
    assert batch.positions[:, 0, a].tolist() == [0, 0, 0]
    pixels, places = batch.pictures[8, 8]
    assert pixels.shape == (1, 64, 768)
    assert len(set(batch.ids[0, places])) == 1


def test_every_step_has_full_rows_at_every_length(mixture: Mixture) -> None:
    names, lengths = set(), set()
    for step in range(64):
        for task in mixture.tasks(step, progress=1.0):
            names.add(task.name)
            lengths.add(task.batch.ids.shape[1])
            assert (task.batch.example >= 0).mean() > 0.5
            assert task.batch.learnt.sum() > 4
    assert names == {"short", "tools", "retrieval"}
    assert lengths == {256, 512, 1024, 2048}


def test_a_step_depends_on_the_seed_and_its_number_alone(mixture: Mixture) -> None:
    first, again, other = (next(mixture.tasks(step, 0.0)).batch.ids for step in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_steps_made_ahead_by_other_processes_are_the_same(mixture: Mixture) -> None:
    ahead = Prefetcher(mixture, 1, lambda step: step / 10)
    try:
        for step in (2, 3, 2):
            made, expected = list(ahead.tasks(step)), list(mixture.tasks(step, step / 10))
            assert [task.name for task in made] == [task.name for task in expected]
            for ours, theirs in zip(made, expected, strict=True):
                np.testing.assert_array_equal(ours.batch.ids, theirs.batch.ids)
    finally:
        ahead.close()


@pytest.mark.parametrize(("progress", "rows", "tokens"), [(0.4, 16, 2048), (0.5, 16, 4096)])
def test_shares_of_a_step_are_alike_and_differ_in_their_examples(
    tokenizer: Tokenizer, progress: float, rows: int, tokens: int
) -> None:
    mixtures = [Mixture(tokenizer, 0, Proportions(short_rows=16, long_tokens=2048), share, 2) for share in range(2)]
    for step in range(4):
        ours, theirs = (list(mixture.tasks(step, progress)) for mixture in mixtures)
        for tasks in (ours, theirs):
            short, long = tasks
            assert short.batch.ids.shape == (rows // 2, 256)
            assert long.batch.ids.size == tokens // 2
            assert (long.name, short.weight, long.weight) == (
                "tools" if step % 4 else "retrieval",
                1.0,
                tokens / (256 * rows),
            )
        assert ours[0].batch.ids[0].tolist() != theirs[0].batch.ids[0].tolist()
