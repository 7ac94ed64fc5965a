"""Two functions with explicit gradients, which take a third of autograd's time on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_EPSILON = 1e-6


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) * weight, over the last dimension."""
    result: Tensor = _RmsNorm.apply(x, weight)  # type: ignore[no-untyped-call]
    return result


def cross_entropy(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of `targets` [N] under the logits `states @ table.T`: states [N, H], table [V, H].

    The gradients are computed with the loss, from the same logits; their [N, V] values are written three times.
    """
    result: Tensor = _CrossEntropy.apply(states, table, targets)  # type: ignore[no-untyped-call]
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(_EPSILON).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        result: Tensor = (x * scale).mul_(weight)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        of_weight = (gradients[0] * normal).flatten(0, -2).sum(0)
        of_normal = gradients[0] * weight
        along = torch.linalg.vecdot(of_normal, normal).unsqueeze(-1).div_(x.shape[-1])
        return of_normal.addcmul_(normal, along, value=-1).mul_(scale), of_weight


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        logits = states @ table.t()
        right = logits.gather(1, targets.unsqueeze(1))
        # In place from here: the logits become the softmax and then the gradient.
        highest = logits.amax(1, keepdim=True)
        total = logits.sub_(highest).exp_().sum(1, keepdim=True)
        loss = (total.log() + highest - right).mean()
        logits.div_(total * len(targets))
        logits[torch.arange(len(targets), device=targets.device), targets] -= 1 / len(targets)
        ctx.save_for_backward(logits @ table, logits.t() @ states)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_states, of_table = ctx.saved_tensors
        return of_states * gradients[0], of_table * gradients[0], None
