"""A step's plan as the decoder's small inputs, written into buffers that live as long as the engine.

The addresses never change, so a binding for one shape is valid for every later step of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from qwonnx.runtime.cache.buffers import HostArray
from qwonnx.runtime.scheduling.sequence import StepPlan

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


# Inputs that a graph for a device reads on the host.
HOST_INPUTS = frozenset({"total_sequence_length"})


class StepInputs(Struct, frozen=True):
    """Views of the buffers, in the decoder's shapes."""

    input_ids: IntArray  # [batch, sequence]
    position_ids: IntArray  # [3, batch, sequence]; three equal axes for text
    past_lengths: IntArray  # [batch]
    positions: IntArray  # [batch, sequence]: one axis of position_ids
    last_positions: Int32Array  # [batch]: the place of each row's last token in the cache, after this step
    total_sequence_length: Int32Array  # []: tokens that the longest row may hold after this step
    logit_positions: IntArray  # [num_logits]; empty if nothing is sampled after this step
    adapter_slots: IntArray  # [batch]


class InputBuffers:
    """Room for the largest step.

    Args:
        max_num_seqs: rows of a decoding step.
        max_num_batched_tokens: columns of a prompt's chunk.
        max_model_len: tokens that a row has room for.
        counts_lengths: whether last_positions and total_sequence_length are filled: for graphs that read them.
        least_logits: positions of a step that wants no logits. On a device no step is empty: CUDA's experts take none.
        new_array: makes memory that steps read, StateBuffers.new_host_array.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        new_array: Callable[[Sequence[int], str], HostArray],
        *,
        counts_lengths: bool = False,
        least_logits: int = 0,
    ) -> None:
        self._counts_lengths = counts_lengths
        self._max_model_len = max_model_len
        self._least_logits = least_logits
        size = max(max_num_seqs, max_num_batched_tokens)
        self._input_ids: IntArray = new_array([size], "int64")
        self._position_ids: IntArray = new_array([3 * size], "int64")
        self._past_lengths: IntArray = new_array([max_num_seqs], "int64")
        self._last_positions: Int32Array = new_array([max_num_seqs], "int32")
        self._total_sequence_length: Int32Array = new_array([], "int32")
        self._logit_positions: IntArray = new_array([1], "int64")
        self._adapter_slots: IntArray = new_array([max_num_seqs], "int64")

    def fill(self, plan: StepPlan, num_rows: int | None = None) -> StepInputs:
        """Write a plan's inputs. They are valid until the next call.

        Args:
            plan: the step.
            num_rows: rows of the inputs; those behind the plan's are sequences without a past. None: the plan's.
        """
        batch, width = num_rows or len(plan.sequences), plan.num_tokens
        position_ids = self._position_ids[: 3 * batch * width].reshape(3, batch, width)
        inputs = StepInputs(
            input_ids=self._input_ids[: batch * width].reshape(batch, width),
            position_ids=position_ids,
            past_lengths=self._past_lengths[:batch],
            positions=position_ids[0],
            last_positions=self._last_positions[:batch],
            total_sequence_length=self._total_sequence_length,
            logit_positions=self._logit_positions[: max(int(plan.wants_logits), self._least_logits)],
            adapter_slots=self._adapter_slots[:batch],
        )
        if batch > len(plan.sequences):
            inputs.input_ids[len(plan.sequences) :] = inputs.past_lengths[len(plan.sequences) :] = 0
            inputs.position_ids[:, len(plan.sequences) :] = np.arange(width)
            inputs.adapter_slots[len(plan.sequences) :] = 0
        for row, sequence in enumerate(plan.sequences):
            start = sequence.num_computed
            inputs.past_lengths[row] = start
            inputs.adapter_slots[row] = sequence.adapter_slot
            inputs.input_ids[row] = sequence.token_ids[start : start + width]
            inputs.position_ids[:, row] = np.arange(start, start + width)
        if self._counts_lengths:
            inputs.last_positions[:] = inputs.past_lengths + (width - 1)
            # A captured step keeps this number, so that of one token is the limit. Kernels then read last_positions.
            longest = self._max_model_len if width == 1 else inputs.past_lengths.max() + width
            inputs.total_sequence_length[...] = longest
        inputs.logit_positions[:] = width - 1
        return inputs
