"""The two basic modules: a projection and a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwonnx.export.operators import ops


class Linear(nn.Module):
    """A projection without bias; `weight` is [out_features, in_features], as stored in the checkpoint."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight)


class RMSNorm(nn.Module):
    """RMS norm whose weight has the checkpoint's 1 already added."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.epsilon)
