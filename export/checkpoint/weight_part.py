"""A weight of the model as a target stores it: whole, a part of its rows, or filled up with zeros."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qwonnx.export.checkpoint.weight_names import ExpertTensor


class Form(Enum):
    """What of a weight is stored."""

    WHOLE = "all rows, as the modules use them"
    QUERIES = "of every head of self_attn.q_proj, the rows that make the query"
    GATES = "of every head of self_attn.q_proj, the rows that make the gate"
    LOGARITHM = "the checkpoint's A_log, for linear_attn.decay_scale"


@dataclass(frozen=True, slots=True)
class WeightPart:
    """One weight, or a part of one.

    name and shape are the weight's own. Experts of an inner size that `multiple` does not divide get zeros up to the
    next multiple: rows of gate and up, and columns of down. These change no result.
    """

    name: str
    shape: tuple[int, ...]
    form: Form = Form.WHOLE
    multiple: int = 1

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what is stored."""
        if self.form in (Form.QUERIES, Form.GATES):
            rows, *columns = self.shape
            return rows // 2, *columns
        experts = ExpertTensor.of(self.name)
        if experts is None or self.multiple == 1:
            return self.shape
        num_experts, num_rows, num_columns = self.shape
        if experts.is_gate_up:
            return num_experts, 2 * _filled(num_rows // 2, self.multiple), num_columns
        return num_experts, num_rows, _filled(num_columns, self.multiple)


def _filled(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
