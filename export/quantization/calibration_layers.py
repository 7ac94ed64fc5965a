"""Runs one decoder layer at a time, in float32, to record the inputs of its weights.

The layers are transformers' own modules, built without weights. Norms, convolution, decays and the router are read, and
every large matrix is replaced by one that reads its rows while it multiplies, a slice at a time. Experts are read one
after the other, each for the tokens that chose it. So memory depends on the number of tokens and the width of a layer,
not on the number of experts or layers.

This module knows weights and activations of one layer, not the text or the use of the moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.row_reader import RowReader
from qwonnx.export.checkpoint.transformers_config import transformers_config
from qwonnx.export.checkpoint.weight_names import DOWN, EXPERTS, GATE_UP
from qwonnx.export.checkpoint.weight_source import WeightSource

# Values of a matrix in memory at a time: 16 MB in float32, long enough for a matrix product to run at full speed.
_SLICE_VALUES = 4 << 20


@dataclass(slots=True)
class Moments:
    """Sums of squares of the inputs of weights, by the weight's name, and the number of vectors in each sum.

    squares are float64 [num_groups, in_features], counts float64 [num_groups]: a group is one expert, or the whole
    weight.
    """

    squares: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, *, group: int = 0, num_groups: int = 1) -> None:
        """Add vectors x [..., in_features], which are inputs of the weight or of one of its experts."""
        flat = x.reshape(-1, x.shape[-1])
        if name not in self.squares:
            self.squares[name] = torch.zeros((num_groups, flat.shape[1]), dtype=torch.float64)
            self.counts[name] = torch.zeros(num_groups, dtype=torch.float64)
        self.squares[name][group] += flat.square().sum(0, dtype=torch.float64)
        self.counts[name][group] += len(flat)


class _StreamedLinear(nn.Module):
    """A projection that reads its weight while it multiplies, and records its inputs."""

    def __init__(self, reader: RowReader, moments: Moments) -> None:
        super().__init__()
        self.reader, self.moments = reader, moments

    def forward(self, x: Tensor) -> Tensor:
        self.moments.add(self.reader.name, x)
        out = x.new_empty((*x.shape[:-1], self.reader.num_rows))
        height = max(1, _SLICE_VALUES // self.reader.num_columns)
        for start in range(0, self.reader.num_rows, height):
            count = min(height, self.reader.num_rows - start)
            out[..., start : start + count] = x @ self.reader.read(start, count).T
        return out


class _StreamedExperts(nn.Module):
    """Routed experts, one in memory at a time. Called as transformers calls its own."""

    def __init__(self, gate_up: RowReader, down: RowReader, num_experts: int, moments: Moments) -> None:
        super().__init__()
        self.gate_up, self.down, self.num_experts, self.moments = gate_up, down, num_experts, moments

    def forward(self, x: Tensor, chosen: Tensor, routing_weights: Tensor) -> Tensor:
        """x [N, hidden], chosen and routing_weights [N, top_k] -> [N, hidden]."""
        out = torch.zeros_like(x)
        self.moments.add(self.gate_up.name, x)
        for expert in range(self.num_experts):
            tokens, places = torch.where(chosen == expert)
            if len(tokens) == 0:
                continue
            projected = x[tokens] @ self._matrix(self.gate_up, expert).T
            inner = nn.functional.silu(projected[:, 0::2]) * projected[:, 1::2]  # gate and up rows alternate
            self.moments.add(self.down.name, inner, group=expert, num_groups=self.num_experts)
            result = inner @ self._matrix(self.down, expert).T
            out.index_add_(0, tokens, result.mul_(routing_weights[tokens, places, None]))
        return out

    def _matrix(self, reader: RowReader, expert: int) -> Tensor:
        num_rows = reader.num_rows // self.num_experts
        return reader.read(expert * num_rows, num_rows)


class LayerRunner:
    """Runs a checkpoint's layers, one after the other, over the same sequences."""

    def __init__(self, folder: Path, config: ModelConfig, source: WeightSource, moments: Moments) -> None:
        self._source, self._moments = source, moments
        self._num_experts = config.num_experts
        self._text_config = transformers_config(folder, config).get_text_config()
        self._text_config._attn_implementation = "sdpa"
        self._layer_class, rotary_class = layer_classes(config)
        self._rotary = rotary_class(self._text_config)

    @torch.no_grad()
    def run(self, index: int, hidden: Tensor) -> None:
        """Put hidden states [sequences, T, hidden_size] through layer `index`, in place."""
        layer = self._load(index)
        positions = torch.arange(hidden.shape[1]).view(1, 1, -1).expand(3, 1, -1)
        angles = self._rotary(hidden, positions)
        # Tokens interact only in the mixer, and only within a sequence.
        for sequence in torch.split(hidden, 1):
            x = layer.input_layernorm(sequence)
            if hasattr(layer, "linear_attn"):
                sequence += layer.linear_attn(hidden_states=x)
            else:
                sequence += layer.self_attn(hidden_states=x, position_embeddings=angles, attention_mask=None)[0]
        # The experts see all tokens at once, because reading an expert costs more than using it.
        feed_forward: Callable[[Tensor], Tensor] = layer.mlp
        if self._num_experts:
            hidden += feed_forward(layer.post_attention_layernorm(hidden))
            return
        for sequence in torch.split(hidden, 1):
            sequence += feed_forward(layer.post_attention_layernorm(sequence))

    def _load(self, index: int) -> Any:
        with torch.device("meta"):
            layer = self._layer_class(self._text_config, index).eval()
        prefix = f"layers.{index}."
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                reader = self._source.rows(f"{prefix}{name}.weight", tuple(module.weight.shape))
                _replace(layer, name, _StreamedLinear(reader, self._moments))
            elif name == EXPERTS:
                gate_up, down = (
                    self._source.rows(f"{prefix}{name}.{part}", tuple(getattr(module, part).shape))
                    for part in (GATE_UP, DOWN)
                )
                _replace(layer, name, _StreamedExperts(gate_up, down, self._num_experts, self._moments))
        small = {}
        for name, parameter in layer.named_parameters():
            ours = prefix + name.replace("A_log", "decay_scale")
            reader = self._source.rows(ours, tuple(parameter.shape)).as_stored()
            small[name] = reader.read(0, reader.num_rows).view(parameter.shape)
        layer.load_state_dict(small, assign=True)
        return layer


def layer_classes(config: ModelConfig) -> tuple[Any, Any]:
    """transformers' layer and rotary embedding, for a mixture of experts or a dense model."""
    if config.num_experts:
        from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as moe

        return moe.Qwen3_5MoeDecoderLayer, moe.Qwen3_5MoeTextRotaryEmbedding
    from transformers.models.qwen3_5 import modeling_qwen3_5 as dense

    return dense.Qwen3_5DecoderLayer, dense.Qwen3_5TextRotaryEmbedding


def _replace(layer: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, module)
