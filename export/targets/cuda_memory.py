"""Memory of a card that kernels take beside the weights and a step's activations, for plans.

Counted in ONNX Runtime 1.31.1 over a CUDA runtime that computes nothing (tests/cuda_standin). These are upper bounds:
the arena keeps a buffer of every size for which no free one was large enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwonnx.export.checkpoint.weight_names import Role
from qwonnx.export.weight_files.weight_item import WeightItem

# MatMulNBits expands a matrix to float16 for more than one row, so many output features at a time.
_EXPANDED_ROWS = 32_768
# QMoE and MoE time their kernels before the first step of a size, on a copy of a matrix with three sets of scales. It
# is held twice: when a layer asks for it, the one that another layer gave back is in part in use.
_TRIALS, _SCALES_OF_TRIAL = 2, 3
_HALF = 2


def step_scratch(items: Sequence[WeightItem]) -> int:
    """Bytes that the kernels of all steps take."""
    trials = (
        item.num_code_bytes + _SCALES_OF_TRIAL * item.num_scale_bytes for item in items if item.role is Role.EXPERTS
    )
    expanded = {
        _HALF * min(item.num_rows, _EXPANDED_ROWS) * item.num_columns
        for item in items
        if item.role is Role.PROJECTION and item.storage.is_quantized
    }
    return _TRIALS * max(trials, default=0) + sum(expanded)


def load_scratch(items: Sequence[WeightItem]) -> int:
    """Bytes that are taken, and given back, while weights are loaded: one matrix of experts before it is packed."""
    return max((item.num_code_bytes for item in items if item.role is Role.EXPERTS), default=0)
