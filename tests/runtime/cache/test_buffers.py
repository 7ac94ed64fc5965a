"""The guarantees of StateBuffers, in any memory: see qwonnx.runtime.cache.buffers."""

from __future__ import annotations

import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import BuffersFactory, StateBuffers
from qwonnx.runtime.cache.rows import RowMove
from qwonnx.runtime.errors import SessionError
from tests.runtime.cache.row_content import (
    Arrays,
    PythonGraph,
    addresses,
    in_bytes,
    random_parts,
    random_segment,
    rows_of,
    run_rows,
    writing,
)

pytestmark = pytest.mark.fast

STATES = (
    StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3)),
    StateSpec(0, "recurrent_state", "past.0.rec", "present.0.rec", "float16", ("batch", 2, 2, 3)),
    StateSpec(1, "key", "past.1.key", "present.1.key", "int8", ("batch", 2, "max_model_len", 3)),
    StateSpec(1, "value", "past.1.value", "present.1.value", "float32", ("batch", 2, "max_model_len", 2)),
)
FIXED = [spec.past for spec in STATES[:2]]
NUM_ROWS, MAX_MODEL_LEN = 4, 10


@pytest.fixture
def buffers(make_buffers: BuffersFactory) -> StateBuffers:
    return make_buffers(STATES, NUM_ROWS, MAX_MODEL_LEN)


def test_a_new_sequence_starts_from_zeros_whatever_was_in_its_row(buffers: StateBuffers) -> None:
    buffers.restore(1, [random_segment(buffers, STATES, 3)])
    buffers.release(1)
    buffers.clear(1)
    seen: list[bool] = []

    def look(inputs: Arrays, _: Arrays) -> None:
        seen.extend(bool(inputs[name].any()) for name in FIXED)

    run_rows(buffers, 1, [0], 1, PythonGraph(look))
    assert seen == [False, False]


def test_what_a_graph_wrote_comes_back_in_pieces_and_as_a_whole(buffers: StateBuffers) -> None:
    buffers.clear(2)
    run_rows(buffers, 2, [0], 4, writing(STATES, 0, 4, seed=1))
    first = buffers.copy_out(2, 0, 4)
    run_rows(buffers, 2, [4], 3, writing(STATES, 4, 3, seed=2))
    second = buffers.copy_out(2, 4, 7)
    assert in_bytes(buffers, first) == [bytes(part) for part in random_parts(STATES, 4, seed=1)]
    assert in_bytes(buffers, second) == [bytes(part) for part in random_parts(STATES, 3, seed=2)]
    whole = in_bytes(buffers, buffers.copy_out(2, 0, 7))
    assert in_bytes(buffers, first, second) == whole
    buffers.restore(0, [first, second])
    run_rows(buffers, 2, [7], 1, writing(STATES, 7, 1, seed=3))  # a copy does not change with the row
    assert in_bytes(buffers, first, second) == whole == in_bytes(buffers, buffers.copy_out(0, 0, 7))


def test_a_graph_goes_on_from_what_was_restored_or_moved(buffers: StateBuffers) -> None:
    segments = [random_segment(buffers, STATES, num_tokens, seed=num_tokens) for num_tokens in (2, 3)]
    buffers.restore(3, segments)
    buffers.move(RowMove(3, 1, 5))
    seen: list[list[bytes]] = []

    def look(inputs: Arrays, _: Arrays) -> None:
        rows = [inputs[spec.past][0] for spec in STATES]
        seen.append([row.tobytes() for row in rows[:2]] + [row[:, :5].tobytes() for row in rows[2:]])

    run_rows(buffers, 1, [5], 1, PythonGraph(look))
    assert seen == [in_bytes(buffers, *segments)]


def test_a_move_carries_what_a_row_holds_and_frees_it(buffers: StateBuffers) -> None:
    lengths = {0: 3, 2: 6}
    for row, length in lengths.items():
        buffers.restore(row, [random_segment(buffers, STATES, length, seed=row)])
    zero, two = rows_of(buffers, lengths)
    for move in (RowMove(0, 3, 3), RowMove(2, 0, 6), RowMove(3, 2, 3)):  # they change places
        buffers.move(move)
    assert list(rows_of(buffers, {0: 6, 2: 3})) == [two, zero]
    buffers.clear(3)  # free, as it was


def test_bytes_from_the_host_come_back(buffers: StateBuffers) -> None:
    parts = random_parts(STATES, 6)
    segment = buffers.from_host(6, parts)
    assert (segment.num_tokens, segment.num_bytes) == (6, sum(map(len, parts)))
    assert in_bytes(buffers, segment) == [bytes(part) for part in parts]


def test_a_run_touches_its_own_rows_alone(buffers: StateBuffers) -> None:
    lengths = {0: 3, 1: 4, 3: 5}
    for row, length in lengths.items():
        buffers.restore(row, [random_segment(buffers, STATES, length, seed=row)])
    before = list(rows_of(buffers, lengths))
    buffers.clear(2)
    run_rows(buffers, 2, [0], 2, writing(STATES, 0, 2))
    assert list(rows_of(buffers, lengths)) == before


def test_a_binding_is_made_once_and_its_addresses_stay(buffers: StateBuffers) -> None:
    graph, again = PythonGraph(), PythonGraph()
    binding = buffers.bind(graph, 1, 2)
    bound = addresses(graph)
    past_lengths, ids = buffers.new_host_array([2], "int64"), buffers.new_host_array([2, 1], "int64")
    logits = buffers.new_host_array([2, 1], "float32")
    binding.bind_input("past_lengths", past_lengths)
    binding.bind_input("input_ids", ids)
    binding.bind_output("logits", logits)

    def count(inputs: Arrays, outputs: Arrays) -> None:
        outputs["logits"][...] = inputs["input_ids"] + inputs["past_lengths"][:, None]

    graph.compute = count
    for row in (1, 2):
        buffers.restore(row, [random_segment(buffers, STATES, row)])
    for step in range(3):
        past_lengths[:], ids[:] = (1 + step, 2 + step), 10 * step  # as they are when the run begins
        binding.run(graph)
        assert logits.tolist() == [[11.0 * step + 1], [11.0 * step + 2]]
    buffers.bind(again, 1, 2)
    assert addresses(again) == bound


def test_after_a_run_that_failed_rows_are_moved_and_released_and_others_are_as_they_were(buffers: StateBuffers) -> None:
    def fail(_: Arrays, outputs: Arrays) -> None:
        outputs["present.0.conv"][...] = 1
        raise SessionError("a kernel failed")

    buffers.restore(0, [random_segment(buffers, STATES, 2)])
    (before,) = rows_of(buffers, {0: 2})
    buffers.clear(1)
    buffers.clear(2)
    with pytest.raises(SessionError):
        run_rows(buffers, 1, [0, 0], 1, PythonGraph(fail))
    buffers.release(1)
    buffers.move(RowMove(2, 1, 0))
    buffers.release(1)
    buffers.discard(1, 0, 1)
    buffers.discard_states(1)
    assert list(rows_of(buffers, {0: 2})) == [before]
    test_a_new_sequence_starts_from_zeros_whatever_was_in_its_row(buffers)
