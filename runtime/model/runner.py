"""Run one step: bind the plan's rows of every state in place, bind the small inputs, return the logits.

A binding takes microseconds per state and a model has hundreds of states, so one binding is kept for each range of
rows. Between two steps on the same rows, only inputs whose shape changed are bound again. The cache's buffers implement
binding and running for their memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import RowBinding
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.model.inputs import InputBuffers, StepInputs
from qwonnx.runtime.model.session import Session, TensorType
from qwonnx.runtime.scheduling.sequence import StepPlan

FloatArray = npt.NDArray[np.float32]

_SMALL_INPUTS = tuple(field.name for field in fields(StepInputs))


@dataclass(slots=True)
class _Binding:
    """A bound range of rows, and the current shapes of the step's other inputs and outputs."""

    rows: RowBinding
    shapes: dict[str, tuple[int, ...]]


def _check_signature(session: Session, states: Sequence[StateSpec], vocab_size: int) -> None:
    """Refuse a graph whose inputs, outputs or states are not the manifest's.

    Buffers are made from the manifest and written before ONNX Runtime compares them with the graph.
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
        cache: holds the states.
        max_num_seqs: rows of the largest decoding step.
        max_num_batched_tokens: tokens of a prompt's largest chunk.
        vocab_size: columns of the logits.

    Raises:
        SessionError: the graph's inputs or outputs are not those of the manifest.
    """

    def __init__(
        self,
        session: Session,
        states: Sequence[StateSpec],
        cache: HybridCache,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        vocab_size: int,
    ) -> None:
        _check_signature(session, states, vocab_size)
        self._session = session
        self._cache = cache
        new_array = cache.buffers.new_host_array
        self._inputs = InputBuffers(max_num_seqs, max_num_batched_tokens, new_array)
        self._logits: FloatArray = new_array([max_num_seqs * vocab_size], "float32")
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
            bound = self._cache.buffers.bind(self._session.new_binding(), plan.first_row, batch)
            binding = self._bindings[plan.first_row, batch] = _Binding(bound, {})
        self._bind_inputs(binding, self._inputs.fill(plan), batch)
        binding.rows.run(self._session)
        for row in range(plan.first_row, plan.first_row + batch):
            self._cache.advance(row, plan.num_tokens)
        rows = batch if plan.wants_logits else 0
        return self._logits[: rows * self._vocab_size].reshape(rows, self._vocab_size)

    def _bind_inputs(self, binding: _Binding, inputs: StepInputs, batch: int) -> None:
        for name in _SMALL_INPUTS:
            array = getattr(inputs, name)
            if binding.shapes.get(name) != array.shape:
                binding.rows.bind_input(name, array)
                binding.shapes[name] = array.shape
        shape = (batch, inputs.logit_positions.shape[0], self._vocab_size)
        if binding.shapes.get("logits") != shape:
            binding.rows.bind_output("logits", self._logits[: math.prod(shape)].reshape(shape))
            binding.shapes["logits"] = shape
