"""The strict buffers themselves: refusals, counts, and the failure of a wrong engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import StateBuffers
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.rows import RowMove, row_bytes
from qwonnx.runtime.engine.engine import Engine
from tests.runtime.cache.row_content import Arrays, PythonGraph, random_segment, run_rows, writing
from tests.runtime.counting_model import make
from tests.runtime.engine.engine_driver import GREEDY, SMALL, TEXT, Received, drive
from tests.runtime.strict_buffers import StrictBuffers

pytestmark = pytest.mark.fast

STATES = (
    StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3)),
    StateSpec(1, "key", "past.1.key", "present.1.key", "float32", ("batch", 2, "max_model_len", 4)),
)


@pytest.fixture
def buffers() -> StrictBuffers:
    """Row 0 holds four tokens; the others are free."""
    buffers = StrictBuffers(STATES, 3, 10)
    buffers.restore(0, [random_segment(buffers, STATES, 4)])
    return buffers


def writes(name: str, where: tuple[slice | int, ...]) -> PythonGraph:
    def compute(_: Arrays, outputs: Arrays) -> None:
        outputs[name][where] = 1

    return PythonGraph(compute)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda b: b.copy_out(1, 0, 1), "row 1 is free"),
        (lambda b: b.copy_out(0, 0, 5), "tokens 0 to 5 of a row that holds 4"),
        (lambda b: b.copy_out(0, 0, 3), "tokens 0 to 3 of a row that holds 4"),
        (lambda b: b.clear(0), "row 0 is in use"),
        (lambda b: b.restore(0, [random_segment(b, STATES, 1)]), "row 0 is in use"),
        (lambda b: b.restore(1, [random_segment(b, STATES, 6, seed) for seed in (0, 1)]), "no room for 12"),
        (lambda b: b.restore(1, [random_segment(StrictBuffers(STATES, 3, 10), STATES, 1)]), "of other buffers"),
        (lambda b: b.restore(1, [random_segment(HostBuffers(STATES, 3, 10), STATES, 1)]), "of other buffers"),
        (lambda b: list(b.to_host([random_segment(StrictBuffers(STATES, 3, 10), STATES, 1)])), "of other buffers"),
        (lambda b: b.move(RowMove(1, 2, 0)), "row 1 is free"),
        (lambda b: b.move(RowMove(0, 1, 3)), "holds 4"),
        (lambda b: (b.clear(1), b.move(RowMove(0, 1, 4))), "row 1 is in use"),
        (lambda b: b.release(1), "row 1 is free"),
        (lambda b: b.discard(0, 3, 4), "that a sequence has"),
        (lambda b: b.discard_states(0), "row 0 is in use"),
        (lambda b: b.bind(PythonGraph(), 2, 2), "that there are not"),
        (lambda b: run_rows(b, 0, [4, 0], 1, PythonGraph()), "row 1 is free"),
        (lambda b: run_rows(b, 0, [3], 1, PythonGraph()), "holds 4 tokens, and the graph is told 3"),
        (lambda b: run_rows(b, 0, [4], 7, PythonGraph()), "no room for 7"),
        (lambda b: run_rows(b, 0, [4], 1, PythonGraph(lambda *_: b.clear(1))), "clear while a graph runs"),
        (lambda b: run_rows(b, 0, [4], 1, writes("present.1.key", (0, 1, 3))), "past of row 0 was changed"),
        (lambda b: run_rows(b, 0, [4], 1, writes("present.1.key", (0, 1, 5))), "behind the step's"),
    ],
)
def test_what_comes_out_of_order_is_refused(
    buffers: StrictBuffers, mistake: Callable[[StateBuffers], object], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        mistake(buffers)


def test_a_segment_is_no_array(buffers: StrictBuffers) -> None:
    segment = buffers.copy_out(0, 1, 4)
    with pytest.raises(TypeError, match="no array"):
        np.asarray(segment)
    assert segment.num_bytes == 5 * 3 * 4 + 3 * 2 * 4 * 4


def test_every_access_is_counted(buffers: StrictBuffers) -> None:
    run_rows(buffers, 0, [4], 1, writing(STATES, 4, 1))
    buffers.move(RowMove(0, 1, 5))
    buffers.restore(0, [buffers.copy_out(1, 0, 5)])
    assert buffers.accesses == {"from_host": 1, "restore": 2, "bind": 1, "run": 1, "move": 1, "copy_out": 1}


def test_what_a_graph_has_no_right_to_is_poison() -> None:
    buffers = StrictBuffers(STATES, 3, 10)
    ones = [memoryview(np.ones(row_bytes(spec, 4) // 4, np.float32).tobytes()) for spec in STATES]
    buffers.restore(0, [buffers.from_host(4, ones)])
    graph, seen = PythonGraph(), []

    def look(inputs: Arrays, _: Arrays) -> None:
        keys, conv = inputs["past.1.key"][0], inputs["past.0.conv"][0]
        seen.extend([bool((keys[:, :4] == 1).all()), bool((conv == 1).all()), bool(np.isnan(keys[:, 4:]).all())])

    graph.compute = look
    run_rows(buffers, 0, [4], 1, graph)
    assert seen == [True, True, True]
    assert all(np.isnan(graph.inputs[spec.past]).all() for spec in STATES)  # after a run
    assert graph.inputs["past_lengths"].tolist() == [-1]


def test_a_device_could_be_added_where_the_engine_is_opened(tmp_path: Path) -> None:
    """An engine uses one buffers object, which counts all its operations on rows."""
    made: list[StrictBuffers] = []

    def make_buffers(*arguments: object) -> StateBuffers:
        made.append(StrictBuffers(*arguments))  # type: ignore[arg-type]
        return made[-1]

    model = make(tmp_path / "artifact")
    prompt, received = model.tokenizer.encode(TEXT), Received()
    with Engine.open(model.folder, SMALL, make_buffers=make_buffers) as engine:
        engine.submit(prompt, GREEDY, received, snapshot_at=[5])
        drive(engine)
        data = engine.save_capsule(prompt)
        assert data is not None
        engine.submit(prompt, GREEDY, again := Received())
        drive(engine)
    assert received.tokens == again.tokens == model.answer(prompt, 12)
    (buffers,) = made
    steps = -(-(len(prompt) - 5) // 4) + 11
    assert buffers.accesses == {
        "clear": 1,
        "bind": 1,
        "run": 2 + steps + steps,
        "copy_out": 1,
        "to_host": 1,
        "restore": 1,
        "release": 2,
    }
