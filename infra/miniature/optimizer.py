"""Muon for matrices, AdamW for the rest.

Muon (kellerjordan.github.io/posts/muon) replaces a matrix's momentum by its nearest orthogonal matrix; scaled as in
arXiv 2502.16982, its steps are as large as AdamW's and share a learning rate with them. Experts are a batch of
matrices, not one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices for Muon; embeddings, convolutions, norms and biases for AdamW.

    Routers and gates are matrices for Muon too: AdamW moves all their weights alike, which at these rates starves
    experts within thirty steps.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_table = any(part in name for part in ("embed_tokens", "pos_embed", "conv1d"))
        (matrices if parameter.ndim >= 2 and not is_table else others).append(parameter)
    return [
        {"params": matrices, "muon": True, "weight_decay": weight_decay},
        {"params": others, "muon": False, "weight_decay": 0.0},
    ]


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum where a group says `muon`, AdamW elsewhere.

    Args:
        lr: of both; AdamW's is multiplied by `adam_scale`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        adam_scale: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "adam_scale": adam_scale, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    (self._muon if group["muon"] else self._adam)(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(buffer, group["momentum"]))
        rows, columns = update.shape[-2:]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        parameter.addcdiv_(mean, square.sqrt().add_(1e-10), value=-group["lr"] * group["adam_scale"] * scale)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest orthogonal matrix of each [..., rows, columns], by Newton and Schulz's iteration."""
    x: Tensor = matrices if matrices.ndim <= 3 else matrices.flatten(1)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
