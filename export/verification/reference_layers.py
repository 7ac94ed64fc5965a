"""transformers' own modules, one decoder layer at a time, with weights that are read while they are used.

    norms, convolution, decays, router     loaded with the layer
    matrices                               replaced by SlicedLinear, which reads rows while it multiplies
    routed experts                         transformers' module with one expert, filled with each expert in turn

Weights come from the checkpoint under its own names and in its own layout, not by way of the export's transforms: an
error in those must show. So memory depends on tokens and on the width of a layer, not on the number of experts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.formats.stored_weights import CheckpointWeights, StoredWeight, is_transposed
from qwonnx.export.checkpoint.transformers_config import transformers_config
from qwonnx.export.checkpoint.weight_names import DOWN, EMBEDDING, EXPERTS, GATE_UP, HEAD, tied_weights
from qwonnx.export.checkpoint.weight_source import text_prefix
from qwonnx.export.quantization.calibration_layers import layer_classes

# Values of weights in memory at a time are at most this share of the budget in float32; reading takes as much again.
_SHARE_OF_BUDGET = 8
_FLOAT32_BYTES = 4
_MANY_VALUES = 16 << 20


def slice_values(memory_bytes: int) -> int:
    """Values of a matrix that are read at a time."""
    return max(1 << 16, min(_MANY_VALUES, memory_bytes // _SHARE_OF_BUDGET // _FLOAT32_BYTES))


class SlicedLinear(nn.Module):
    """A projection without bias whose weight [rows, columns] is read in slices of rows."""

    def __init__(self, weight: StoredWeight, max_values: int) -> None:
        super().__init__()
        self._weight, self._max_values = weight, max_values

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] -> [..., rows]."""
        out = x.new_empty((*x.shape[:-1], self._weight.num_rows))
        for rows, values in slices(self._weight, self._max_values):
            out[..., rows] = nn.functional.linear(x, values)
        return out


def slices(weight: StoredWeight, max_values: int) -> Iterator[tuple[slice, Tensor]]:
    """A weight's rows and their float32 values [count, columns], from the first to the last.

    A weight whose tensors are transposed is read whole: few of its rows would be as many small reads as it has columns.
    """
    height = weight.num_rows if is_transposed(weight) else max(1, max_values // weight.num_columns)
    for start in range(0, weight.num_rows, height):
        count = min(height, weight.num_rows - start)
        yield slice(start, start + count), weight.read(start, count).float()


class StreamedExperts(nn.Module):
    """Routed experts: transformers' module with one expert, which is filled with each that a token chose.

    Called as transformers calls its own. `used` is bool [num_experts]: experts that a token chose so far.
    """

    def __init__(self, module: nn.Module, weights: Sequence[tuple[_Rows, _Rows]]) -> None:
        super().__init__()
        self._module, self._weights = module, weights
        self.used = torch.zeros(len(weights), dtype=torch.bool)

    def forward(self, x: Tensor, chosen: Tensor, routing_weights: Tensor) -> Tensor:
        """x [N, hidden], chosen and routing_weights [N, top_k] -> [N, hidden]."""
        out = torch.zeros_like(x)
        experts = torch.unique(chosen).tolist()
        self.used[experts] = True
        with ThreadPoolExecutor(1) as reader:  # reads the next expert while this one multiplies
            coming = reader.submit(self._read, experts[0]) if experts else None
            for place, expert in enumerate(experts):
                assert coming is not None
                gate_up, down = coming.result()
                coming = reader.submit(self._read, experts[place + 1]) if place + 1 < len(experts) else None
                self._module.gate_up_proj = nn.Parameter(gate_up[None], requires_grad=False)
                self._module.down_proj = nn.Parameter(down[None], requires_grad=False)
                tokens, places = torch.where(chosen == expert)
                only = torch.zeros((len(tokens), 1), dtype=chosen.dtype)
                out.index_add_(0, tokens, self._module(x[tokens], only, routing_weights[tokens, places, None]))
        return out

    def _read(self, expert: int) -> tuple[Tensor, Tensor]:
        gate_up, down = self._weights[expert]
        return gate_up.read(), down.read()


class _Rows:
    """Rows of stored weights, one under the other."""

    def __init__(self, *parts: tuple[StoredWeight, int, int]) -> None:
        self._parts = parts  # weight, first row, number of rows

    def read(self) -> Tensor:
        """As float32 [rows, columns]."""
        return torch.cat([weight.read(start, count).float() for weight, start, count in self._parts])


class ReferenceLayers:
    """A checkpoint's text model in float32, layer by layer.

    Args:
        folder: the checkpoint's, or the first file of a model in GGUF, for transformers' view of its configuration.
        config: of the model.
        weights: by the checkpoint's names.
        memory_bytes: the budget; the size of slices depends on it, the results do not.

    All methods raise CheckpointError if a weight is missing, misshapen or cannot be read.
    """

    def __init__(self, folder: Path, config: ModelConfig, weights: CheckpointWeights, memory_bytes: int) -> None:
        self._weights, self._config = weights, config
        self._prefix = text_prefix(weights.names)
        self._max_values = slice_values(memory_bytes)
        text_config = transformers_config(folder, config).get_text_config()
        text_config._attn_implementation = "sdpa"
        text_config._experts_implementation = "eager"
        self._text_config = text_config
        self._layer_class, rotary_class = layer_classes(config)
        self._rotary = rotary_class(text_config)

    @property
    def num_layers(self) -> int:
        return self._config.num_hidden_layers

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """float32 [T, hidden_size]."""
        table = self._open(EMBEDDING, (self._config.vocab_size, self._config.hidden_size))
        hidden = torch.empty((len(token_ids), self._config.hidden_size))
        ids = torch.tensor(token_ids)
        for token in torch.unique(ids).tolist():
            hidden[ids == token] = table.read(token, 1).float()
        return hidden

    @torch.no_grad()
    def run(self, index: int, hidden: Tensor) -> LayerRun:
        """Put hidden states [sequences, T, hidden_size] through layer `index`."""
        layer = self._load(index)
        positions = torch.arange(hidden.shape[1]).view(1, 1, -1).expand(3, 1, -1)
        out: Tensor = layer(hidden, position_embeddings=self._rotary(hidden, positions), attention_mask=None)
        experts = [module for module in layer.modules() if isinstance(module, StreamedExperts)]
        return LayerRun(out, tuple(experts[0].used.tolist()) if experts else ())

    @torch.no_grad()
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The input of the head, of the same shape as hidden [..., hidden_size]."""
        with torch.device("meta"):
            norm = type(self._layer_class(self._text_config, 0).input_layernorm)(
                self._config.hidden_size, eps=self._config.rms_norm_eps
            )
        values = self._small("norm.weight", (self._config.hidden_size,))
        norm.load_state_dict({"weight": values}, assign=True)
        out: Tensor = norm(hidden)
        return out

    def head_slices(self, max_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the head, as float32 [count, hidden_size]."""
        config, prefix = self._config, ""
        name = HEAD
        if HEAD in tied_weights(config):
            name, prefix = EMBEDDING, self._prefix
        weight = self._weights.open(prefix + name, (config.vocab_size, config.hidden_size))
        return slices(weight, min(self._max_values, max_rows * config.hidden_size))

    def _load(self, index: int) -> Any:
        with torch.device("meta"):
            layer = self._layer_class(self._text_config, index).eval()
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                weight = self._open(f"layers.{index}.{name}.weight", tuple(module.weight.shape))
                _replace(layer, name, SlicedLinear(weight, self._max_values))
            elif name == EXPERTS:
                _replace(layer, name, self._experts(f"layers.{index}.{name}.", module))
        small = {
            name: self._small(f"layers.{index}.{name}", tuple(parameter.shape))
            for name, parameter in layer.named_parameters()
            if not parameter.is_meta or not name.startswith(EXPERTS)
        }
        layer.load_state_dict(small, strict=False, assign=True)
        return layer

    def _experts(self, prefix: str, module: Any) -> StreamedExperts:
        num_experts, gate_up_rows, num_inputs = module.gate_up_proj.shape
        down_shape = tuple(module.down_proj.shape)
        alone = copy.copy(self._text_config)
        alone.num_experts = 1
        with torch.device("meta"):
            one = type(module)(alone)
        weights: list[tuple[_Rows, _Rows]] = []
        if self._prefix + prefix + GATE_UP in self._weights.names:
            gate_up = self._open(prefix + GATE_UP, (num_experts, gate_up_rows, num_inputs))
            down = self._open(prefix + DOWN, down_shape)
            rows = down_shape[1]
            weights = [
                (_Rows((gate_up, expert * gate_up_rows, gate_up_rows)), _Rows((down, expert * rows, rows)))
                for expert in range(num_experts)
            ]
        else:
            half = gate_up_rows // 2
            for expert in range(num_experts):
                gate, up = (
                    self._open(f"{prefix}{expert}.{part}_proj.weight", (half, num_inputs)) for part in ("gate", "up")
                )
                down = self._open(f"{prefix}{expert}.down_proj.weight", down_shape[1:])
                weights.append((_Rows((gate, 0, half), (up, 0, half)), _Rows((down, 0, down_shape[1]))))
        return StreamedExperts(one, weights)

    def _open(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        return self._weights.open(self._prefix + name, shape)

    def _small(self, name: str, shape: tuple[int, ...]) -> Tensor:
        weight = self._open(name, shape)
        return weight.read(0, weight.num_rows).float().view(shape)


class LayerRun:
    """The result of a layer: hidden [sequences, T, hidden_size], and which experts a token chose (none if dense)."""

    def __init__(self, hidden: Tensor, used: tuple[bool, ...]) -> None:
        self.hidden, self.used = hidden, used


def _replace(layer: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, module)
