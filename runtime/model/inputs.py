"""A step's plan as the decoder's small inputs, written into buffers that live as long as the engine.

The addresses never change, so a binding for one shape is valid for every later step of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.cache.buffers import HostArray
from qwonnx.runtime.scheduling.sequence import StepPlan

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Views of the buffers, in the decoder's shapes."""

    input_ids: IntArray  # [batch, sequence]
    position_ids: IntArray  # [3, batch, sequence]; three equal axes for text
    past_lengths: IntArray  # [batch]
    logit_positions: IntArray  # [num_logits]; empty if nothing is sampled after this step


class InputBuffers:
    """Room for the largest step.

    Args:
        max_num_seqs: rows of a decoding step.
        max_num_batched_tokens: columns of a prompt's chunk.
        new_array: makes memory that steps read, StateBuffers.new_host_array.
    """

    def __init__(
        self, max_num_seqs: int, max_num_batched_tokens: int, new_array: Callable[[Sequence[int], str], HostArray]
    ) -> None:
        size = max(max_num_seqs, max_num_batched_tokens)
        self._input_ids: IntArray = new_array([size], "int64")
        self._position_ids: IntArray = new_array([3 * size], "int64")
        self._past_lengths: IntArray = new_array([max_num_seqs], "int64")
        self._logit_positions: IntArray = new_array([1], "int64")

    def fill(self, plan: StepPlan) -> StepInputs:
        """Write a plan's inputs. They are valid until the next call."""
        batch, width = len(plan.sequences), plan.num_tokens
        inputs = StepInputs(
            input_ids=self._input_ids[: batch * width].reshape(batch, width),
            position_ids=self._position_ids[: 3 * batch * width].reshape(3, batch, width),
            past_lengths=self._past_lengths[:batch],
            logit_positions=self._logit_positions[: int(plan.wants_logits)],
        )
        for row, sequence in enumerate(plan.sequences):
            start = sequence.num_computed
            inputs.past_lengths[row] = start
            inputs.input_ids[row] = sequence.token_ids[start : start + width]
            inputs.position_ids[:, row] = np.arange(start, start + width)
        inputs.logit_positions[:] = width - 1
        return inputs
