"""Run one step: the plan's rows of every state bound in place, its small inputs beside them, logits out.

Binding a state costs microseconds and a model has hundreds, so bindings are kept, one for each range of rows; between
two steps on the same rows, only inputs whose shape changed are bound again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.hybrid_cache import HybridCache, row_pointer
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.model.inputs import InputBuffers, StepInputs
from qwonnx.runtime.model.session import Session, TensorType
from qwonnx.runtime.scheduling.sequence import StepPlan

FloatArray = npt.NDArray[np.float32]

_SMALL_INPUTS = tuple(field.name for field in fields(StepInputs))


@dataclass(slots=True)
class _Binding:
    """An onnxruntime.IOBinding of a range of rows, and the shapes its small inputs have at present."""

    io: Any
    shapes: dict[str, tuple[int, ...]]


def _check_signature(session: Session, states: Sequence[StateSpec], vocab_size: int) -> None:
    """Refuse a graph whose inputs, outputs or states are not the manifest's.

    Buffers are made by the manifest, and touched before ONNX Runtime could compare them with the graph.
    """
    expected_inputs = {*_SMALL_INPUTS, *(state.past for state in states)}
    expected_outputs = {"logits", *(state.present for state in states)}
    odd = (expected_inputs ^ session.inputs.keys()) | (expected_outputs ^ session.outputs.keys())
    for state in states:
        described = TensorType(state.dtype, tuple(size if isinstance(size, int) else None for size in state.shape))
        if state.past not in odd and session.inputs[state.past] != described:
            odd.add(state.past)
    if "logits" not in odd and session.outputs["logits"].shape[-1:] not in ((vocab_size,), (None,)):
        odd.add("logits")
    if odd:
        names = ", ".join(sorted(odd)[:4])
        raise SessionError(f"the decoder's inputs or outputs are not the manifest's ({names}): export again")


class ModelRunner:
    """The decoder with its states.

    Args:
        session: the decoder's graph.
        states: the manifest's states.
        cache: where they lie.
        inputs: buffers of the small inputs.
        max_num_seqs: rows of the largest decoding step.
        vocab_size: columns of the logits.

    Raises:
        SessionError: the graph's inputs or outputs are not those of the manifest.
    """

    def __init__(
        self,
        session: Session,
        states: Sequence[StateSpec],
        cache: HybridCache,
        inputs: InputBuffers,
        max_num_seqs: int,
        vocab_size: int,
    ) -> None:
        _check_signature(session, states, vocab_size)
        self._session = session
        self._states = tuple(states)
        self._cache = cache
        self._inputs = inputs
        self._logits = np.zeros(max_num_seqs * vocab_size, dtype=np.float32)
        self._vocab_size = vocab_size
        self._bindings: dict[tuple[int, int], _Binding] = {}

    def run(self, plan: StepPlan) -> FloatArray:
        """Run a step and account for it in the cache.

        Returns:
            Logits `[batch, vocab_size]` (batch 0 if the plan wants none), overwritten by the next step.

        Raises:
            SessionError: the graph failed; the states of the plan's rows are then undefined.
        """
        batch = len(plan.sequences)
        self._cache.prepare(batch * plan.num_tokens)
        for row, sequence in enumerate(plan.sequences, plan.first_row):
            if sequence.num_computed == 0:
                self._cache.begin(row)
        binding = self._bindings.get((plan.first_row, batch))
        if binding is None:
            binding = self._bindings[plan.first_row, batch] = self._bind_rows(plan.first_row, batch)
        self._bind_inputs(binding, self._inputs.fill(plan), batch)
        self._session.run(binding.io)
        for row in range(plan.first_row, plan.first_row + batch):
            self._cache.advance(row, plan.num_tokens)
        rows = batch if plan.wants_logits else 0
        return self._logits[: rows * self._vocab_size].reshape(rows, self._vocab_size)

    def _bind_rows(self, first_row: int, batch: int) -> _Binding:
        io = self._session.new_binding()
        for state in self._states:
            buffer = self._cache.buffers[state.past]
            shape, pointer = (batch, *buffer.shape[1:]), row_pointer(buffer, first_row)
            io.bind_input(state.past, "cpu", 0, buffer.dtype, shape, pointer)
            io.bind_output(state.present, "cpu", 0, buffer.dtype, shape, pointer)
        return _Binding(io, {})

    def _bind_inputs(self, binding: _Binding, inputs: StepInputs, batch: int) -> None:
        for name in _SMALL_INPUTS:
            array = getattr(inputs, name)
            if binding.shapes.get(name) != array.shape:
                binding.io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                binding.shapes[name] = array.shape
        shape = (batch, inputs.logit_positions.shape[0], self._vocab_size)
        if binding.shapes.get("logits") != shape:
            binding.io.bind_output("logits", "cpu", 0, self._logits.dtype, shape, self._logits.ctypes.data)
            binding.shapes["logits"] = shape
