"""The modules of one stage: some layers of the decoder, with the hidden state as input, as output, or both.

Names of weights are those of the whole decoder. Every stage has the input input_ids: attention on the CPU reads a
step's shape from it.
"""

from __future__ import annotations

from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.decoder import DecoderLayer, Embedding
from qwonnx.export.modeling.layers import Linear, RMSNorm
from qwonnx.export.modeling.rotary import RotaryAngles
from qwonnx.export.modeling.stage_cut import StageCut

States = list[tuple[Tensor, Tensor]]


class DecoderStage(nn.Module):
    """Layers of one stage."""

    def __init__(self, config: ModelConfig, rotary_angles: RotaryAngles, cut: StageCut) -> None:
        super().__init__()
        if cut.is_first:
            self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_angles = rotary_angles
        self.layers = nn.ModuleDict(
            {str(index): DecoderLayer(config, config.layer_types[index]) for index in range(cut.first, cut.end)}
        )
        if cut.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def run_layers(
        self, h: Tensor, position_ids: Tensor, past_lengths: Tensor, past_states: States, wanted: Tensor | None
    ) -> tuple[Tensor, States]:
        """The layers in order; the last one keeps only the wanted tokens, if they are given."""
        angles = self.rotary_angles(position_ids)
        present_states = []
        for index, (layer, past) in enumerate(zip(self.layers.values(), past_states, strict=True), 1):
            h, present = layer(h, angles, past_lengths, past, wanted if index == len(self.layers) else None)
            present_states.append(present)
        return h, present_states


class FirstStage(DecoderStage):
    """input_ids [B, T] -> hidden_states [B, T, hidden_size] and its layers' states."""

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_lengths: Tensor, past_states: States
    ) -> tuple[Tensor, States]:
        return self.run_layers(self.embed_tokens(input_ids), position_ids, past_lengths, past_states, None)


class MiddleStage(DecoderStage):
    """hidden_states -> hidden_states, both [B, T, hidden_size], and its layers' states."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_lengths: Tensor,
        hidden_states: Tensor,
        past_states: States,
    ) -> tuple[Tensor, States]:
        return self.run_layers(hidden_states, position_ids, past_lengths, past_states, None)


class LastStage(DecoderStage):
    """hidden_states [B, T, hidden_size] -> logits [B, num_logits, vocab_size] and its layers' states."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_lengths: Tensor,
        logit_positions: Tensor,
        hidden_states: Tensor,
        past_states: States,
    ) -> tuple[Tensor, States]:
        h, present = self.run_layers(hidden_states, position_ids, past_lengths, past_states, logit_positions)
        return self.lm_head(self.norm(h)), present


def decoder_stage(config: ModelConfig, rotary_angles: RotaryAngles, cut: StageCut) -> DecoderStage:
    """The modules of a stage."""
    kind = FirstStage if cut.is_first else LastStage if cut.is_last else MiddleStage
    return kind(config, rotary_angles, cut)
