"""Rows whose states lie in several processes: those of the first stage here, the others behind links.

A step runs the first stage's session, and sends its hidden states from stage to stage. Operations wait for the next
step, which carries them, so that a token costs one exchange a stage.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.file_names import NEXT_HIDDEN_STATES
from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, RowBinding, Runnable, Segment, StateBuffers
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.rows import RowMove, row_bytes, row_cost
from qwonnx.runtime.errors import CapsuleError, StageLostError
from qwonnx.runtime.model.stages.link import StageLink
from qwonnx.runtime.model.stages.operations import Code, Operation
from qwonnx.runtime.model.stages.step import FloatArray, StageLimits, StageStep
from qwonnx.runtime.model.stages.wire import Kind


@dataclass(frozen=True, slots=True)
class FarStage:
    """A stage in another process: its link, and its layers' states."""

    link: StageLink
    states: tuple[StateSpec, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StagedSegment:
    """The first stage's part, and the others' by its number, as of these epochs."""

    number: int
    num_tokens: int
    num_bytes: int
    here: Segment
    epochs: tuple[int, ...]


class StagedBinding(RowBinding):
    """The first stage's binding, and what the other stages need of a step."""

    def __init__(self, buffers: StagedBuffers, here: RowBinding, first_row: int, num_rows: int) -> None:
        self._buffers, self._here = buffers, here
        self._first_row, self._num_rows = first_row, num_rows
        self._inputs: dict[str, HostArray] = {}
        self._logits: HostArray = np.zeros(0, np.float32)
        self._hidden: FloatArray = np.zeros(0, np.float32)

    def bind_input(self, name: str, array: HostArray) -> None:
        self._inputs[name] = array
        if name == "input_ids":
            self._hidden = self._buffers.hidden_states(*array.shape)
            self._here.bind_output(NEXT_HIDDEN_STATES, self._hidden)
        if name in self._buffers.own_inputs:
            self._here.bind_input(name, array)

    def bind_output(self, name: str, array: HostArray, *, on_demand: bool = False) -> None:
        assert name == "logits", f"stages have no output {name}"
        self._logits = array

    def fetch(self, array: HostArray) -> None:
        """Do nothing: runs write the logits."""

    def run(self, session: Runnable, *, reads_outputs: bool = True) -> None:
        self._buffers.check_rows(self._first_row, self._num_rows)
        self._here.run(session)
        step = StageStep(
            self._first_row,
            self._logits.shape[1],
            self._inputs["past_lengths"],
            self._inputs["input_ids"],
            self._hidden,
        )
        self._buffers.run_far_stages(step, self._logits)


class StagedBuffers(StateBuffers):
    """All states of all rows of all stages.

    Args:
        here: states of the first stage.
        far: the other stages, in their order.
        limits: of steps and rows.
        hidden_size: of the hidden states.
        own_inputs: names of the inputs of the first stage's graph.

    Raises:
        MemoryError: there is no room here.
        StageLostError: a stage is gone, or has no room.
    """

    def __init__(
        self,
        here: Sequence[StateSpec],
        far: Sequence[FarStage],
        limits: StageLimits,
        hidden_size: int,
        own_inputs: frozenset[str],
    ) -> None:
        self.own_inputs = own_inputs
        self._here = HostBuffers(here, limits.num_rows, limits.max_model_len)
        self._here_states, self._far = tuple(here), tuple(far)
        self._cost = row_cost([*here, *(state for stage in far for state in stage.states)])
        self._hidden_size = hidden_size
        self._hidden: FloatArray = np.zeros(limits.max_tokens * hidden_size, np.float32)
        self._row_epochs: list[tuple[int, ...]] = [()] * limits.num_rows
        self._numbers = count(1)
        self._number_lock = threading.Lock()
        self.reserved_bytes = self._here.reserved_bytes
        for stage in far:
            stage.link.open(limits)

    def clear(self, row: int) -> None:
        self._here.clear(row)
        self._begin_row(row)
        self._send(Operation(Code.CLEAR, row), self._row_epochs[row])

    def new_host_array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostArray:
        return self._here.new_host_array(shape, dtype)

    def bind(self, io: Any, first_row: int, num_rows: int) -> RowBinding:
        return StagedBinding(self, self._here.bind(io, first_row, num_rows), first_row, num_rows)

    def copy_out(self, row: int, start: int, end: int) -> Segment:
        segment = self._segment(self._here.copy_out(row, start, end), self._row_epochs[row])
        self._send(Operation(Code.COPY_OUT, row, start, end, segment.number), segment.epochs)
        return segment

    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        own = [_own(segment) for segment in segments]
        self._here.restore(row, [segment.here for segment in own])
        self._begin_row(row)
        epochs = self._row_epochs[row]
        if any(segment.epochs != epochs for segment in own):
            self._row_epochs[row] = ()  # of a lost stage: a step with this row fails
            return
        for segment in own:
            self._send(Operation(Code.RESTORE, row, segment.number, int(segment is own[-1])), epochs)

    def move(self, move: RowMove) -> None:
        self._here.move(move)
        self._row_epochs[move.target] = epochs = self._row_epochs[move.source]
        self._send(Operation(Code.MOVE, move.source, move.target, move.num_tokens), epochs)

    def release(self, row: int) -> None:
        self._here.release(row)

    def discard(self, row: int, start: int, end: int) -> None:
        self._here.discard(row, start, end)
        self._send(Operation(Code.DISCARD, row, start, end), self._row_epochs[row])

    def discard_states(self, row: int) -> None:
        self._here.discard_states(row)
        self._send(Operation(Code.DISCARD_STATES, row), self._row_epochs[row])

    def to_host(self, segments: Sequence[Segment]) -> Iterator[memoryview]:
        own = [_own(segment) for segment in segments]
        num_tokens = sum(segment.num_tokens for segment in own)
        yield from self._here.to_host([segment.here for segment in own])
        numbers = np.asarray([segment.number for segment in own], "<i8").tobytes()
        for index, stage in enumerate(self._far):
            if any(segment.epochs[index : index + 1] != (stage.link.epoch,) for segment in own):
                raise CapsuleError(f"{stage.link.name} was lost, and this state with it: read the prompt again")
            sizes = [row_bytes(spec, num_tokens) for spec in stage.states]
            try:
                parts = stage.link.exchange(Kind.FETCH, [numbers], sum(sizes))
            except StageLostError as error:
                raise CapsuleError(str(error)) from error
            if [len(part) for part in parts] != sizes:
                raise CapsuleError(f"{stage.link.name} gives a state of another size: read the prompt again")
            yield from parts

    def from_host(self, num_tokens: int, parts: Sequence[memoryview]) -> Segment:
        start = len(self._here_states)
        segment = self._segment(self._here.from_host(num_tokens, parts[:start]), self._epochs())
        for stage in self._far:
            end = start + len(stage.states)
            header = np.asarray([segment.number, num_tokens], "<i8").tobytes()
            try:
                stage.link.exchange(Kind.STORE, [header, *parts[start:end]])
            except StageLostError as error:
                raise CapsuleError(str(error)) from error
            start = end
        return segment

    def hidden_states(self, num_rows: int, width: int) -> FloatArray:
        """Where the first stage writes its hidden states, [num_rows, width, hidden_size]."""
        return self._hidden[: num_rows * width * self._hidden_size].reshape(num_rows, width, self._hidden_size)

    def check_rows(self, first_row: int, num_rows: int) -> None:
        """
        Raises:
            StageLostError: a row's states are lost in a stage.
        """
        now = self._epochs()
        if any(epochs != now for epochs in self._row_epochs[first_row : first_row + num_rows]):
            raise StageLostError("a stage was lost, and the states of this request with it: send the request again")

    def run_far_stages(self, step: StageStep, logits: HostArray) -> None:
        """Send a step from stage to stage, and write the logits of the last one.

        Raises:
            SessionError: a stage failed; the states of the rows are undefined.
        """
        for stage in self._far:
            is_last = stage is self._far[-1]
            wanted = logits if is_last else step.hidden_states
            parts = stage.link.exchange(Kind.STEP, step.packed(), wanted.nbytes)
            if [len(part) for part in parts] != [wanted.nbytes]:
                stage.link.close()
                raise StageLostError(f"{stage.link.name} is lost (its answer has another size): send the request again")
            result = np.frombuffer(parts[0], "<f4").reshape(wanted.shape)
            if is_last:
                logits[...] = result
            else:
                step = StageStep(step.first_row, step.num_logits, step.past_lengths, step.input_ids, result)

    def _segment(self, here: Segment, epochs: tuple[int, ...]) -> StagedSegment:
        with self._number_lock:
            number = next(self._numbers)
        segment = StagedSegment(number, here.num_tokens, self._cost.bytes_of(here.num_tokens), here, epochs)
        weakref.finalize(segment, self._send, Operation(Code.DROP, number), epochs).atexit = False
        return segment

    def _begin_row(self, row: int) -> None:
        self._row_epochs[row] = self._epochs()

    def _epochs(self) -> tuple[int, ...]:
        return tuple(stage.link.epoch for stage in self._far)

    def _send(self, operation: Operation, epochs: tuple[int, ...]) -> None:
        for stage, epoch in zip(self._far, epochs, strict=False):
            stage.link.add(operation, epoch)


def _own(segment: Segment) -> StagedSegment:
    assert isinstance(segment, StagedSegment), "a segment of other buffers"
    return segment
