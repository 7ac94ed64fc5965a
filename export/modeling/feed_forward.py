"""The second half of a layer: a SwiGLU MLP in dense models, routed experts and a shared one in the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.layers import Linear
from qwonnx.export.operators import ops


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        hidden = gate * torch.sigmoid(gate) * self.up_proj(x)
        out: Tensor = self.down_proj(hidden)
        return out


class Router(nn.Module):
    """The matrix that scores the experts; its product is part of the routed experts' operator."""

    def __init__(self, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden))


class Experts(nn.Module):
    """All experts' weights as two tensors, gate and up rows alternating (see `ops.routed_experts`)."""

    def __init__(self, num_experts: int, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate, hidden))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden, intermediate))


class MixtureOfExperts(nn.Module):
    """The top-k routed experts, plus a shared expert scaled by its own sigmoid gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = Router(config.num_experts, config.hidden_size)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_expert = SwiGLU(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = Linear(config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        routed = ops.routed_experts(
            x, self.gate.weight, self.experts.gate_up_proj, self.experts.down_proj, top_k=self.top_k
        )
        shared: Tensor = torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return routed + shared
