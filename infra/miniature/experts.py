"""Routed experts with an explicit gradient: tokens sorted by expert, one matrix product for each expert and matrix.

Autograd would keep every intermediate [N * K, H]; this keeps two and computes the others again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def routed_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, index: Tensor) -> Tensor:
    """Sum over the chosen experts of weight * down(silu(gate x) * up x): [N, H].

    Args:
        x: [N, H].
        gate_up: [E, 2I, H], gate rows first.
        down: [E, H, I].
        weights, index: [N, K], of the chosen experts.
    """
    result: Tensor = _RoutedExperts.apply(x, gate_up, down, weights, index)  # type: ignore[no-untyped-call]
    return result


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        num_chosen = index.shape[1]
        order = index.flatten().argsort(stable=True)
        bounds = [0, *torch.bincount(index.flatten(), minlength=len(down)).cumsum(0).tolist()]
        token = order // num_chosen
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)

        rows = x.index_select(0, token)
        products = rows.new_empty(len(rows), gate_up.shape[1])
        for expert, (start, end) in enumerate(pairwise(bounds)):
            torch.mm(rows[start:end], gate_up[expert].t(), out=products[start:end])
        gate, up = products.chunk(2, 1)
        # The weight is applied to the narrow side; down is linear.
        inner = torch.nn.functional.silu(gate) * up * weights.flatten()[order].unsqueeze(1)
        outputs = torch.empty_like(rows)
        for expert, (start, end) in enumerate(pairwise(bounds)):
            torch.mm(inner[start:end], down[expert].t(), out=outputs[start:end])
        ctx.save_for_backward(x, gate_up, down, weights, order, back, products)
        ctx.bounds = bounds
        return embedding_bag(back.view_as(index), outputs, mode="sum")  # gathered and summed at once

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up, down, weights, order, back, products = ctx.saved_tensors
        bounds = ctx.bounds
        token = order // weights.shape[1]
        of_output = gradients[0].index_select(0, token)
        scale = weights.flatten()[order].unsqueeze(1)
        gate, up = products.chunk(2, 1)
        sigmoid = gate.sigmoid()
        activated = gate * sigmoid
        inner = activated * up * scale
        rows = x.index_select(0, token)

        # Frozen experts of a fine-tune need no gradient of their own, which is half of the products.
        of_gate_up = torch.empty_like(gate_up) if ctx.needs_input_grad[1] else None
        of_down = torch.empty_like(down) if ctx.needs_input_grad[2] else None
        of_inner = torch.empty_like(inner)
        for expert, (start, end) in enumerate(pairwise(bounds)):
            torch.mm(of_output[start:end], down[expert], out=of_inner[start:end])
            if of_down is not None:
                torch.mm(of_output[start:end].t(), inner[start:end], out=of_down[expert])
        of_weights = (of_inner * activated * up).sum(1)[back].view_as(weights)
        of_inner *= scale
        of_products = torch.cat([of_inner * up * (sigmoid + activated * (1 - sigmoid)), of_inner * activated], 1)
        of_rows = torch.empty_like(rows)
        for expert, (start, end) in enumerate(pairwise(bounds)):
            torch.mm(of_products[start:end], gate_up[expert], out=of_rows[start:end])
            if of_gate_up is not None:
                torch.mm(of_products[start:end].t(), rows[start:end], out=of_gate_up[expert])
        of_x = embedding_bag(back.view_as(weights), of_rows, mode="sum")
        return of_x, of_gate_up, of_down, of_weights, None
