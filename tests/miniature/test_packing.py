"""Rows hold whole examples, and each token knows whose it is and where it is."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.miniature import glossary, pictures
from tests.miniature.conversation import Encoded
from tests.miniature.mixture import Mixture, Proportions
from tests.miniature.packing import fill, rope_positions
from tests.miniature.prefetch import Prefetcher


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
    batch = mixture.pack([[first, second], [second]], 128)
    a, b = len(first.ids), len(second.ids)
    np.testing.assert_array_equal(batch.ids[0, a : a + b], second.ids)
    np.testing.assert_array_equal(batch.learnt[0, a : a + b], second.learnt)
    assert batch.example[0].tolist() == [0] * a + [1] * b + [-1] * (128 - a - b)
    assert batch.example[1].tolist() == [2] * b + [-1] * (128 - b)
    assert batch.sequence[0, a] == 1
    assert batch.positions[:, 0, a].tolist() == [0, 0, 0]
    pixels, places = batch.pictures[8, 8]
    assert pixels.shape == (1, 64, 768)
    assert len(set(batch.ids[0, places])) == 1


def test_every_step_has_full_rows_at_every_length(mixture: Mixture) -> None:
    names, lengths = set(), set()
    for step in range(12):
        for task in mixture.tasks(step, progress=1.0):
            names.add(task.name)
            lengths.add(task.batch.ids.shape[1])
            assert (task.batch.example >= 0).mean() > 0.5
            assert task.batch.learnt.sum() > 4
    assert names == {"short", "tools", "retrieval"}
    assert lengths == {256, 512, 1024}


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


def test_shares_of_a_step_have_equal_tokens_and_weigh_its_rows_alike(tokenizer: Tokenizer) -> None:
    proportions = Proportions(short_rows=16, long_tokens=2048)
    for step in range(4):
        shares = [list(Mixture(tokenizer, 0, proportions, share, 2).tasks(step, 0.5)) for share in range(2)]
        assert [sum(task.batch.ids.size for task in tasks) for tasks in shares] == [3072, 3072]
        assert sorted(len(tasks) for tasks in shares) == [1, 2]
        for tasks in shares:
            assert tasks[0].weight / 2 == len(tasks[0].batch.ids) / 16
        (long,) = [task for tasks in shares for task in tasks[1:]]
        assert (long.name, long.weight) == ("tools" if step % 2 else "retrieval", 1.0)
    one, other = (next(Mixture(tokenizer, 0, proportions, share, 2).tasks(0, 0.0)).batch.ids for share in range(2))
    assert one[0].tolist() != other[0].tolist()
