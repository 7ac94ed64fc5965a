"""The whole text model, which is traced into decoder.onnx.

Attribute names are the checkpoint's, so the graph's initializers carry them. No weights are read here: parameters are
shapes, and the modules are built and traced on fake tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.attention import GatedAttention
from qwonnx.export.modeling.delta_net import GatedDeltaNet
from qwonnx.export.modeling.feed_forward import MixtureOfExperts, SwiGLU
from qwonnx.export.modeling.layers import Linear, RMSNorm
from qwonnx.export.modeling.rotary import RotaryAngles
from qwonnx.export.operators import ops


class Embedding(nn.Module):
    """Token embeddings [vocab_size, hidden_size]."""

    def __init__(self, vocab_size: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden))

    def forward(self, input_ids: Tensor) -> Tensor:
        return ops.embedding(input_ids, self.weight)


class DecoderLayer(nn.Module):
    """Mixer and feed-forward, each after a norm and around a residual. The mixer carries two states.

    Tokens of a layer interact only in its mixer. So the last layer keeps only the wanted tokens after its mixer: its
    states are complete, and a prompt skips the experts of this layer for all tokens but one.
    """

    def __init__(self, config: ModelConfig, layer_type: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GatedAttention(config) if layer_type == "full_attention" else None
        self.linear_attn = GatedDeltaNet(config) if layer_type == "linear_attention" else None
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = (
            MixtureOfExperts(config) if config.num_experts else SwiGLU(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        h: Tensor,
        angles: tuple[Tensor, Tensor],
        past_lengths: Tensor,
        past: tuple[Tensor, Tensor],
        wanted: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = self.input_layernorm(h)
        mixer = self.self_attn or self.linear_attn
        assert mixer is not None
        if isinstance(mixer, GatedAttention):
            mixed, *present = mixer(x, *angles, *past, past_lengths)
        else:
            mixed, *present = mixer(x, *past)
        if wanted is not None:
            h, mixed = torch.index_select(h, 1, wanted), torch.index_select(mixed, 1, wanted)
        h = h + mixer.project(mixed)
        return h + self.mlp(self.post_attention_layernorm(h)), (present[0], present[1])


class Decoder(nn.Module):
    """input_ids [B, T] -> logits [B, num_logits, vocab_size] and every layer's two present states.

    position_ids is [3, B, T], past_lengths [B]. logit_positions [num_logits] selects the places of the chunk that get
    logits, and may be empty: the head costs as much as many layers, and only a prompt's last token needs it.
    """

    def __init__(self, config: ModelConfig, rotary_angles: RotaryAngles) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_angles = rotary_angles
        self.layers = nn.ModuleList(DecoderLayer(config, layer_type) for layer_type in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_lengths: Tensor,
        logit_positions: Tensor,
        past_states: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        h = self.embed_tokens(input_ids)
        angles = self.rotary_angles(position_ids)
        present_states = []
        for index, (layer, past) in enumerate(zip(self.layers, past_states, strict=True), 1):
            wanted = logit_positions if index == len(self.layers) else None
            h, present = layer(h, angles, past_lengths, past, wanted)
            present_states.append(present)
        return self.lm_head(self.norm(h)), present_states
