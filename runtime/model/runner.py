"""Run one step: bind the plan's rows of every state in place, bind the small inputs, return the logits.

A graph for a device also gives the largest logits of each row. All of them then stay in the device's memory, and those
of a row come to the host if its request needs them.

A binding takes microseconds per state and a model has hundreds of states, so one binding is kept for each range of
rows. Between two steps on the same rows, only inputs whose shape changed are bound again. The cache's buffers implement
binding and running for their memory.

On a device that captures, capture() makes a CUDA graph for decoding steps of 1, 2, 3, ... rows from row 0 on. A graph
replays shapes and addresses, whatever is bound: so its number is the number of its rows, and a step that is not of its
kind runs without a graph. The first run of a graph computes its step several times, so graphs are made before a row is
in use, and only then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from qwonnx.runtime.artifact.file_names import ADAPTERS
from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, RowBinding, Runnable
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.model.inputs import InputBuffers, StepInputs
from qwonnx.runtime.model.session import StepSession, TensorType
from qwonnx.runtime.sampling.logits import RowLogits, TopLogits
from qwonnx.runtime.scheduling.sequence import StepPlan

FloatArray = npt.NDArray[np.float32]

TOP_VALUES, TOP_IDS = "top_logits", "top_ids"
_KNOWN_INPUTS = frozenset(StepInputs.__struct_fields__)
# Up to so many rows each number has its graph. Above, every eighth has one, and free rows fill up a step.
_GRAPH_FOR_EACH = 8


class _Binding(Struct):
    """A bound range of rows, and the current shapes of the step's other inputs and outputs."""

    rows: RowBinding
    shapes: dict[str, tuple[int, ...]]


def _check_signature(
    session: StepSession, states: Sequence[StateSpec], vocab_size: int, adapters: HostArray | None
) -> None:
    """Refuse a graph whose inputs, outputs or states are not the manifest's.

    Buffers are made from the manifest and written before ONNX Runtime compares them with the graph.
    """
    pasts = {state.past for state in states}
    expected_outputs = {"logits", *(state.present for state in states)}
    if TOP_VALUES in session.outputs:
        expected_outputs |= {TOP_VALUES, TOP_IDS}
    odd = (pasts - session.inputs.keys()) | (session.inputs.keys() - pasts - _KNOWN_INPUTS - {ADAPTERS})
    odd |= {"input_ids", "logit_positions"} - session.inputs.keys()
    odd |= expected_outputs ^ session.outputs.keys()
    for state in states:
        described = TensorType(state.dtype, tuple(size if isinstance(size, int) else None for size in state.shape))
        if state.past not in odd and session.inputs[state.past] != described:
            odd.add(state.past)
    if "logits" not in odd and session.outputs["logits"].shape[-1:] not in ((vocab_size,), (None,)):
        odd.add("logits")
    for name, dtype in ((TOP_VALUES, "float32"), (TOP_IDS, "int64")):
        if name in expected_outputs - odd:
            values, found = session.outputs[TOP_VALUES], session.outputs[name]
            fits = 1 <= (values.shape[-1] or 0) <= vocab_size
            if not fits or (found.dtype, found.shape) != (dtype, values.shape):
                odd.add(name)
    taken = session.inputs.get(ADAPTERS)
    if taken != (None if adapters is None else TensorType("float32", (None, adapters.shape[1], None))):
        odd.add(ADAPTERS)
    if odd:
        names = ", ".join(sorted(odd)[:4])
        raise SessionError(f"the decoder's inputs or outputs are not the manifest's ({names}): export again")


class ModelRunner:
    """The decoder with its states.

    Args:
        session: the decoder's graph.
        states: the manifest's states.
        cache: holds the states.
        max_num_seqs: rows of the largest decoding step.
        max_num_batched_tokens: tokens of a prompt's largest chunk.
        vocab_size: columns of the logits.
        adapters: the slots of adapters, float32 [num_slots, width, rank], if the graph reads them.

    Raises:
        SessionError: the graph's inputs or outputs are not those of the manifest.
    """

    def __init__(
        self,
        session: StepSession,
        states: Sequence[StateSpec],
        cache: HybridCache,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        vocab_size: int,
        adapters: HostArray | None = None,
    ) -> None:
        _check_signature(session, states, vocab_size, adapters)
        self._adapters = adapters
        self._session = session
        self._cache = cache
        new_array = cache.buffers.new_host_array
        self._inputs = InputBuffers(
            max_num_seqs,
            max_num_batched_tokens,
            cache.max_model_len,
            new_array,
            counts_lengths="last_positions" in session.inputs,
            least_logits=int(session.is_on_device),
        )
        self._input_names = tuple(sorted(_KNOWN_INPUTS & session.inputs.keys()))
        self._max_num_seqs, self._max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self._graphs: dict[int, Runnable] = {}  # by number of rows
        self._outputs = {"logits": new_array([max_num_seqs, vocab_size], "float32")}
        for name in {TOP_VALUES, TOP_IDS} & session.outputs.keys():
            output = session.outputs[name]
            self._outputs[name] = new_array([max_num_seqs, output.shape[-1] or 0], output.dtype)
        self._bindings: dict[tuple[int, int], _Binding] = {}

    def run(self, plan: StepPlan) -> list[RowLogits]:
        """Run a step and account for it in the cache.

        Returns:
            logits of each of the plan's rows (none if the plan wants none), overwritten by the next step.

        Raises:
            SessionError: the graph failed; the states of the plan's rows are then undefined.
        """
        batch = len(plan.sequences)
        self._cache.prepare(batch * plan.num_tokens)
        for row, sequence in enumerate(plan.sequences, plan.first_row):
            if sequence.num_computed == 0:
                self._cache.begin(row)
        num_rows = self._rows_of_graph(plan)
        rows = self._run(plan, num_rows or batch, self._graphs.get(num_rows, self._session))
        for row in range(plan.first_row, plan.first_row + batch):
            self._cache.advance(row, plan.num_tokens)
        return [self._row_logits(rows, index) for index in range(batch)] if plan.wants_logits else []

    def capture(self) -> int:
        """Run the longest prompt and make the graphs of decoding steps, if the session captures; all rows must be free.

        Returns:
            the number of graphs.

        Raises:
            SessionError: the device failed.
        """
        if not self._session.captures:
            return 0
        # The longest step first: what it takes of the device's memory serves the shorter ones, too.
        self._run(StepPlan(0, (), self._max_num_batched_tokens, wants_logits=True), 1, self._session)
        most = self._max_num_seqs
        sizes = [size for size in range(1, most + 1) if size <= _GRAPH_FOR_EACH or not size % 8 or size == most]
        graphs: dict[int, Runnable] = {size: self._session.replaying(size) for size in sizes}
        for size in reversed(sizes):
            assert all(self._cache.is_free(row) for row in range(size)), "a graph's first run would spoil rows in use"
            self._run(StepPlan(0, (), 1, wants_logits=True), size, graphs[size])
        self._graphs = graphs
        return len(sizes)

    def _rows_of_graph(self, plan: StepPlan) -> int:
        """The rows of the graph that runs a step; 0 if none does. Rows behind the step's must be free."""
        if plan.first_row or plan.num_tokens != 1 or not plan.wants_logits:
            return 0
        batch = len(plan.sequences)
        size = next((size for size in self._graphs if size >= batch), 0)
        return size if all(self._cache.is_free(row) for row in range(batch, size)) else 0

    def _row_logits(self, rows: RowBinding, index: int) -> RowLogits:
        row: FloatArray = self._outputs["logits"][index]
        if TOP_VALUES not in self._outputs:
            return RowLogits(lambda: row)

        def read_all() -> FloatArray:
            rows.fetch(row)
            return row

        return RowLogits(read_all, TopLogits(self._outputs[TOP_IDS][index], self._outputs[TOP_VALUES][index]))

    def _run(self, plan: StepPlan, num_rows: int, session: Runnable) -> RowBinding:
        key = plan.first_row, num_rows
        binding = self._bindings.get(key)
        if binding is None:
            bound = self._cache.buffers.bind(self._session.new_binding(), *key)
            if self._adapters is not None:
                bound.bind_input(ADAPTERS, self._adapters)
            binding = self._bindings[key] = _Binding(bound, {})
        self._bind_inputs(binding, self._inputs.fill(plan, num_rows), num_rows)
        binding.rows.run(session, reads_outputs=plan.wants_logits)
        return binding.rows

    def _bind_inputs(self, binding: _Binding, inputs: StepInputs, batch: int) -> None:
        for name in self._input_names:
            array = getattr(inputs, name)
            if binding.shapes.get(name) != array.shape:
                binding.rows.bind_input(name, array)
                binding.shapes[name] = array.shape
        for name, array in self._outputs.items():
            shape = (batch, inputs.logit_positions.shape[0], array.shape[1])
            if binding.shapes.get(name) != shape:
                on_demand = name == "logits" and TOP_VALUES in self._outputs
                bound = array.reshape(-1)[: math.prod(shape)].reshape(shape)
                binding.rows.bind_output(name, bound, on_demand=on_demand)
                binding.shapes[name] = shape
